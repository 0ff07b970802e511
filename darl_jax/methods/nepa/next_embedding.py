"""Next-embedding prediction: the output at t points in the direction of the next patch's embedding.

NEPA (arXiv 2512.16922; github.com/SihanXU/nepa). There are no pixels in the loss, no decoder and no
second network: the target is what the same model's first block gets of the next patch.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, ObjectiveConfig, average
from darl_jax.methods.images import ImageMethod
from darl_jax.methods.nepa.collapse import effective_rank, mean_pairwise_cosine, unit
from darl_jax.nn.flops import backbone_flops, linear
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class NextEmbeddingConfig(ObjectiveConfig):
    """Config of next-embedding prediction.

    Attributes:
      stop_gradient: whether targets are constants; without it they collapse onto one vector.
    """

    name: str = "next_embedding"
    stop_gradient: bool = True


class NextEmbeddingModel(nnx.Module):
    """Backbone alone; transfer keeps it."""

    def __init__(self, vit: ViTConfig, *, grid: Grid, channels: int, rngs: nnx.Rngs):
        self.backbone = ViT(vit, patch_dim=vit.patch_size**2 * channels, grid=grid, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "batch patch pixel"],
        grid: Grid,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "batch patch width"], Float[Array, "batch patch width"]]:
        """Predictions and targets of all patches, in the order of the sequence.

        The prediction of a patch is the final norm's output at the token before it. Its target is
        its token as it enters the first block: embedded, with its norm and its added position where
        the backbone has them.

        Args:
          patches: standardized, of whole images, in raster order.
          grid: (rows, columns) of patches.
          key: of drop path and RoPE's scale; None outside training.
        """
        backbone = self.backbone
        tokens, angles = backbone.sequence(patches, grid, backbone.order(grid))
        if angles is not None:
            angles = angles[..., :-1, :]
        predicted = backbone.encode(tokens[:, :-1], angles, mask="causal", key=key).tokens
        return predicted, tokens[:, 1:]


@dataclasses.dataclass(frozen=True)
class NextEmbedding(ImageMethod[NextEmbeddingModel]):
    """Mean over examples and patches of -cos(output at t - 1, embedding of patch t).

    Collapse, targets that are all alike, has a loss of -1 and teaches nothing: the metrics show the
    targets' mean pairwise cosine, and in validation their effective rank.

    Raises:
      ValueError: there is no start token, or the order of patches is random.
    """

    objective: NextEmbeddingConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.start_token == "none":
            raise ValueError(
                "model.start_token='none' leaves nothing that the first patch could be predicted "
                "from; choose 'learned'"
            )
        if self.model.order.name == "random":
            raise ValueError(
                "model.order.name='random' leaves a model without a query stream ignorant of the "
                f"patch that comes next; config.objective.name={self.name!r} needs a fixed order"
            )

    @property
    def tokens(self) -> int:
        """Sequence length: the start token and all patches but the last one to predict."""
        return math.prod(self.grid)

    def init(self, rngs: nnx.Rngs) -> NextEmbeddingModel:
        return NextEmbeddingModel(
            self.model, grid=self.trained_grid, channels=self.data.channels, rngs=rngs
        )

    def flops(self) -> int:
        """Three forward passes; the last patch is embedded as a target alone."""
        encoder = backbone_flops(self.model, patches=self.tokens - 1, patch_dim=self.patch_dim)
        return 3 * (encoder + linear(self.patch_dim, self.model.width))

    def loss(
        self, model: NextEmbeddingModel, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss; `key` draws drop path and RoPE's scale."""
        predicted, target = model(self.patches(batch), self.batch_grid(batch), key)
        metrics = self._metrics(predicted, target, batch)
        return metrics["loss"].compute(), metrics

    def validate(self, model: NextEmbeddingModel, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Metrics of training, where nothing is random, and the targets' effective rank."""
        del key
        predicted, target = model(self.patches(batch), self.batch_grid(batch))
        metrics = self._metrics(predicted, target, batch)
        return metrics | {"target_rank": effective_rank(unit(target), batch["mask"])}

    def _metrics(
        self,
        predicted: Float[Array, "batch patch width"],
        target: Float[Array, "batch patch width"],
        batch: Batch,
    ) -> Metrics:
        if self.objective.stop_gradient:
            target = jax.lax.stop_gradient(target)
        predicted, target = unit(predicted), unit(target)
        cosine = jnp.sum(predicted * target, axis=-1)
        return {
            "loss": average(-cosine, batch["mask"]),
            "target_cosine": mean_pairwise_cosine(target, batch["mask"]),
        }
