"""DARL: a causal backbone and a patch decoder (Figure 1)."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.darl.patch_decoders import (
    DenoisingPatchDecoder,
    PatchDecoder,
    PatchDecoderConfig,
)
from darl_jax.methods.darl.two_stream import QueryStream
from darl_jax.nn import orders
from darl_jax.nn.orders import Order
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViT, ViTConfig


class DARL(nnx.Module):
    """Pre-training model; transfer keeps its `backbone`.

    Args:
      denoising: True for the diffusion objective, False for the squared error.
      two_stream: whether patches are predicted from a query stream (Appendix A.5).
      grid: (rows, columns) of patches.
      channels: of an image.
    """

    def __init__(
        self,
        vit: ViTConfig,
        patch_decoder: PatchDecoderConfig,
        *,
        denoising: bool,
        two_stream: bool = False,
        grid: Grid,
        channels: int,
        rngs: nnx.Rngs,
    ):
        patch_dim = vit.patch_size**2 * channels
        self.backbone = ViT(vit, patch_dim=patch_dim, grid=grid, rngs=rngs)
        self.query_stream = QueryStream(vit, rngs=rngs) if two_stream else None
        decoder: Any = DenoisingPatchDecoder if denoising else PatchDecoder
        self.patch_decoder = decoder(patch_decoder, vit, patch_dim=patch_dim, rngs=rngs)

    def encode(
        self,
        patches: Float[Array, "batch patch pixel"],
        grid: Grid | None = None,
        order: Order | None = None,
    ) -> Float[Array, "batch patch width"]:
        """z_t = f(x_{<t}) for every patch x_t, where "<" is the order of the sequence.

        Patches of whole images and outputs are in raster order. A model without two streams only
        knows its own order.

        Args:
          grid: (rows, columns) of patches; the trained grid by default.
          order: order of prediction; the config's by default.

        Raises:
          ValueError: the number of patches does not fit the grid.
        """
        grid = grid or self.backbone.grid
        order = self.backbone.order(grid) if order is None else order
        if self.query_stream is not None:
            z = self.query_stream(self.backbone, patches, grid=grid, order=order)
        else:
            z = self.backbone(patches, grid=grid, order=order, without_last=True).tokens
        return orders.take(z, orders.inverse(order))

    def draw_order(self, key: PRNGKeyArray | None, batch: int, grid: Grid | None = None) -> Order:
        """Order of prediction for a batch: the config's, or a random one per image."""
        config = self.backbone.config.order
        return orders.draw_orders(config, key, batch, grid or self.backbone.grid)
