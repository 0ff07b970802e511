"""Models to and from other frameworks: safetensors, a PyTorch module, timm, MAE.

Every foreign file becomes, or is made from, the flat names of `names.py`: those of the PyTorch
module in `torch_module.py`, which is copied beside an export and is never imported here.
"""

from darl_jax.interchange.loading import LoadedModel, build_backbone, load_model

__all__ = ["LoadedModel", "build_backbone", "load_model"]
