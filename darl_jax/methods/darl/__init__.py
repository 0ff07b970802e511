"""DARL: autoregressive pre-training with a decoder-only ViT (arXiv 2403.05196)."""
