"""DARL: autoregressive image pre-training with a decoder-only ViT (arXiv 2403.05196), in JAX.

A causal vision transformer reads an image patch by patch and predicts each next patch, by mean
squared error or by denoising it. Start at `darl_jax/train.py`.
"""

__version__ = "0.1.0"
