"""Import and export of weights: safetensors, a PyTorch module, timm, AIM, AIMv2, MAE, NEPA.

Every format is converted to or from the flat names of `names.py`, which are those of the PyTorch
module in `torch_module.py`. That file is copied into exports and never imported here.
"""

from darl_jax.interchange.loading import LoadedModel, build_backbone, load_model

__all__ = ["LoadedModel", "build_backbone", "load_model"]
