"""DARL: a causal backbone and a patch decoder (Figure 1)."""

import math
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, PyTree

from darl_jax.models.patch_decoders import (
    DenoisingPatchDecoder,
    PatchDecoder,
    PatchDecoderConfig,
)
from darl_jax.models.positions import Grid
from darl_jax.models.vit import ViT, ViTConfig

# Flax would place parameters when they are made; the table in sharding.py says where they go.
nnx.use_eager_sharding(False)


class DARL(nnx.Module):
    """The model that is pre-trained; transfer keeps its `backbone`.

    Args:
      vit: the backbone's shape.
      patch_decoder: the decoder's shape.
      denoising: True for the diffusion objective, False for the squared error.
      grid: (rows, columns) of patches.
      channels: of an image.
      rngs: random state for the initial parameters.
    """

    def __init__(
        self,
        vit: ViTConfig,
        patch_decoder: PatchDecoderConfig,
        *,
        denoising: bool,
        grid: Grid,
        channels: int,
        rngs: nnx.Rngs,
    ):
        patch_dim = vit.patch_size**2 * channels
        self.backbone = ViT(vit, patch_dim=patch_dim, grid=grid, rngs=rngs)
        decoder: Any = DenoisingPatchDecoder if denoising else PatchDecoder
        self.patch_decoder = decoder(patch_decoder, vit, patch_dim=patch_dim, rngs=rngs)

    def encode(
        self, patches: Float[Array, "batch patch pixel"], grid: Grid | None = None
    ) -> Float[Array, "batch patch width"]:
        """z_t = f(x_{<t}) for all T patches, from [SOS, p_1 .. p_{T-1}].

        Args:
          patches: all of an image's.
          grid: (rows, columns) of them; the trained grid if not given.

        Raises:
          ValueError: these are not all the patches of an image.
        """
        grid = grid or self.backbone.grid
        if patches.shape[1] != math.prod(grid):
            raise ValueError(f"{patches.shape[1]} patches do not fill the grid of {grid}")
        return self.backbone(patches[:, :-1], mask="causal", grid=grid).tokens


def parameters(model: nnx.Module) -> PyTree:
    """A model's parameters as a nested dict of arrays with plain names."""
    return nnx.to_pure_dict(nnx.split(model)[1])
