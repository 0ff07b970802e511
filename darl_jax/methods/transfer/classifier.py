"""Classifier on a backbone, for fine-tuning and supervised training."""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.nn.attention import Mask
from darl_jax.nn.blocks import LayerNorm
from darl_jax.nn.positions import Grid
from darl_jax.nn.readout import readout
from darl_jax.nn.vit import ViT, ViTConfig


class Classifier(nnx.Module):
    """Backbone, readout and one linear layer (Section 4.1, Appendix A.2).

    Settled here: the readout takes tokens after the final norm; the linear layer computes in
    float32 and starts at 0, as in the original ViT. `grid` is the trained (rows, columns).

    With `norm_after_pooling` the readout takes tokens before the final norm, which nothing reads
    then, and a new LayerNorm follows it (MAE's fine-tuning, arXiv 2111.06377).
    """

    def __init__(
        self,
        vit: ViTConfig,
        *,
        num_classes: int,
        grid: Grid,
        channels: int,
        norm_after_pooling: bool = False,
        rngs: nnx.Rngs,
    ):
        self.backbone = ViT(vit, patch_dim=vit.patch_size**2 * channels, grid=grid, rngs=rngs)
        self.pooled_norm = (
            LayerNorm(vit.width, epsilon=vit.norm_epsilon, use_fast_variance=False, rngs=rngs)
            if norm_after_pooling
            else None
        )
        self.head = nnx.Linear(
            vit.width, num_classes, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(
        self,
        patches: Float[Array, "batch patch pixel"],
        *,
        mask: Mask,
        pooling: str,
        grid: Grid,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch class"]:
        """Logits of whole images; no patch is left out of the input.

        Args:
          patches: standardized, in raster order.
          mask: 'causal' or 'full' attention.
          pooling: one of readout.POOLINGS.
          grid: (rows, columns) of patches.
          key: of drop path; None outside training.
        """
        features = self.backbone(patches, mask=mask, grid=grid, key=key)
        start_tokens = self.backbone.config.start_tokens
        if self.pooled_norm is None:
            return self.head(readout(features.tokens, pooling, start_tokens=start_tokens))
        pooled = readout(features.last, pooling, start_tokens=start_tokens)
        return self.head(self.pooled_norm(pooled))
