"""A classifier on a backbone: for fine-tuning, and for supervised training from nothing."""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.nn.attention import Mask
from darl_jax.nn.positions import Grid
from darl_jax.nn.readout import readout
from darl_jax.nn.vit import ViT, ViTConfig


class Classifier(nnx.Module):
    """Backbone, read-out and one linear layer (Section 4.1, Appendix A.2).

    Settled here: the read-out takes tokens after the final norm, the linear layer computes in
    float32 and starts at 0, as in the original ViT.

    Args:
      vit: the backbone's shape.
      num_classes: of the labels.
      grid: (rows, columns) of patches of the images that positions are counted on.
      channels: of an image.
      rngs: random state for the initial parameters.
    """

    def __init__(
        self, vit: ViTConfig, *, num_classes: int, grid: Grid, channels: int, rngs: nnx.Rngs
    ):
        self.backbone = ViT(vit, patch_dim=vit.patch_size**2 * channels, grid=grid, rngs=rngs)
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
        """Logits of images whose every patch is an input.

        Args:
          patches: standardized, all of an image's, in raster order.
          mask: 'causal' or 'full' attention.
          pooling: 'last' or 'mean' (nn/readout.py).
          grid: (rows, columns) of patches.
          key: draws which branches drop path leaves out; None outside training.
        """
        tokens = self.backbone(patches, mask=mask, grid=grid, key=key).tokens
        return self.head(readout(tokens, pooling))
