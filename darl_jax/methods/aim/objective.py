"""AIM's objective (Section 3.1): each patch after a bidirectional prefix, from those before it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.methods.aim.head import Head, HeadConfig, head_flops
from darl_jax.methods.base import Batch, Metrics, ObjectiveConfig, average
from darl_jax.methods.images import PatchMethod, Prediction
from darl_jax.nn import orders
from darl_jax.nn.patches import normalize_patches, patch_statistics, squared_error
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViT, ViTConfig

ATTENTIONS = ("prefix", "causal")


@dataclasses.dataclass(frozen=True)
class AIMConfig(ObjectiveConfig):
    """Config of AIM.

    Attributes:
      attention: 'prefix' draws a prefix for each image, in which attention is full; 'causal' has
        none and predicts all patches but the first (Table 3d).
      validation_prefix: patches in the prefix of held-out images; None draws them as in training,
        by the evaluation's key.
      normalize_target: standardize each patch by its own mean and variance (Table 3a).
      head: maps the backbone's output to pixels (Tables 3e and 4).
    """

    name: str = "aim"
    attention: str = "prefix"
    validation_prefix: int | None = None
    normalize_target: bool = True
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"objective.attention={self.attention!r} is unknown; choose from {ATTENTIONS}"
            )


class AIM(nnx.Module):
    """Pre-training model: a backbone, which transfer keeps, and a head."""

    def __init__(
        self, vit: ViTConfig, head: HeadConfig, *, grid: Grid, channels: int, rngs: nnx.Rngs
    ):
        patch_dim = vit.patch_size**2 * channels
        self.backbone = ViT(vit, patch_dim=patch_dim, grid=grid, rngs=rngs)
        self.head = Head(head, vit, patch_dim=patch_dim, grid=grid, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "batch patch pixel"],
        prefix: Int[Array, " batch"],
        grid: Grid | None = None,
    ) -> Float[Array, "batch next pixel"]:
        """Predictions of all patches but the first, in the sequence's order.

        The last token predicts nothing. It is computed all the same: without it an image of 256
        patches would leave an odd number, which cuDNN's attention does not take with a mask.

        Args:
          patches: of whole images, in raster order.
          prefix: of each image, the number of patches that all tokens attend to.
          grid: (rows, columns) of patches; the trained grid by default.
        """
        grid = grid or self.backbone.grid
        order = self.backbone.order(grid)
        tokens = self.backbone(patches, mask=prefix, grid=grid, order=order).tokens
        return self.head(tokens, mask=prefix, grid=grid, order=order)[:, :-1]


@dataclasses.dataclass(frozen=True)
class AIMMethod(PatchMethod[AIM]):
    """Mean of ||f(x_{<t}, x_{<S}) - x_t||^2 over all patches t >= S of the batch.

    S is uniform on 1 .. T - 1 for each image, so that one patch is seen and one is predicted. The
    mean is over the targets of the global batch: images with a short prefix weigh more, and devices
    do not matter (Apple's code averages over each device's images, and then over devices).

    Raises:
      ValueError: there is a start token, an order that differs from image to image, or a prefix
        that leaves nothing to predict.
    """

    model_defaults: ClassVar[Mapping[str, Any]] = {
        "positions": "sincos2d",
        "start_token": "none",
        "patch_norm": "layer",
        "attention_bias": False,
        "mlp_bias": False,
    }
    prefix_mask: ClassVar[bool] = True

    objective: AIMConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.start_token != "none":
            raise ValueError(
                f"model.start_token={self.model.start_token!r} must be 'none' with "
                "config.objective.name='aim': its first patch is always seen and never predicted"
            )
        if self.model.order.name == "random":
            raise ValueError(
                "model.order.name='random' is none of AIM's: a model without a query cannot know "
                "which patch comes next; 'permutation' is drawn once"
            )
        patches, prefix = math.prod(self.grid), self.objective.validation_prefix
        if patches < 2:
            raise ValueError(
                f"model.patch_size={self.model.patch_size} leaves one patch, and nothing to "
                "predict it from"
            )
        if prefix is not None and not 1 <= prefix < patches:
            raise ValueError(
                f"objective.validation_prefix={prefix} must be from 1 to {patches - 1}: of "
                f"{patches} patches one must be seen and one left to predict"
            )

    def init(self, rngs: nnx.Rngs) -> AIM:
        return AIM(
            self.model,
            self.objective.head,
            grid=self.trained_grid,
            channels=self.data.channels,
            rngs=rngs,
        )

    def flops(self) -> int:
        head = head_flops(
            self.objective.head, self.model, tokens=self.tokens, patch_dim=self.patch_dim
        )
        return 3 * (self.backbone_flops() + head)

    def check_mesh(self, mesh: Mesh) -> None:
        super().check_mesh(mesh)
        head = self.objective.head
        if head.kind == "transformer" and head.num_heads % mesh.shape["tensor"]:
            raise ValueError(
                f"config.objective.head.num_heads={head.num_heads} must be a multiple of "
                f"config.mesh.tensor={mesh.shape['tensor']}"
            )

    def draw_prefix(self, key: PRNGKeyArray, batch: int, patches: int) -> Int[Array, " batch"]:
        """Prefix of each image in training."""
        if self.objective.attention == "causal":
            return jnp.ones(batch, jnp.int32)
        return jax.random.randint(key, (batch,), 1, patches)

    def loss(self, model: AIM, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Loss; `key` draws the prefixes."""
        patches = self.patches(batch)
        return self.loss_after(model, batch, self.draw_prefix(key, *patches.shape[:2]))

    def validate(self, model: AIM, batch: Batch, key: PRNGKeyArray) -> Metrics:
        if self.objective.validation_prefix is None:
            return self.loss(model, batch, key)[1]
        prefix = jnp.full(len(batch["mask"]), self.objective.validation_prefix, jnp.int32)
        return self.loss_after(model, batch, prefix)[1]

    def loss_after(
        self, model: AIM, batch: Batch, prefix: Int[Array, " batch"]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss of all patches after given prefixes."""
        patches, grid = self.patches(batch), self.batch_grid(batch)
        target = normalize_patches(patches) if self.objective.normalize_target else patches
        in_sequence = orders.take(target, model.backbone.order(grid))
        error = squared_error(model(patches, prefix, grid), in_sequence[:, 1:])
        predicted = jnp.arange(1, patches.shape[1]) >= prefix[:, None]
        loss = average(error, batch["mask"], predicted)
        return loss.compute(), {"loss": loss}

    def predict(self, model: AIM, batch: Batch, key: PRNGKeyArray) -> Prediction:
        """Predictions as standardized pixels, of all patches after a prefix.

        The prefix is `validation_prefix`, or else one patch. Its patches stand there as they are,
        with an error that is not a number.
        """
        del key
        patches, grid = self.patches(batch), self.batch_grid(batch)
        order = model.backbone.order(grid)
        length = self.objective.validation_prefix or 1
        output = model(patches, jnp.full(len(patches), length, jnp.int32), grid)
        target = orders.take(patches, order)
        mean, std = patch_statistics(target)
        in_loss = normalize_patches(target)
        if not self.objective.normalize_target:
            mean, std, in_loss = jnp.zeros_like(mean), jnp.ones_like(std), target
        error = jnp.pad(squared_error(output, in_loss[:, 1:]), ((0, 0), (1, 0)))
        predicted = jnp.pad(output.astype(mean.dtype), ((0, 0), (1, 0), (0, 0))) * std + mean
        seen = np.arange(len(order)) < length
        error = jnp.where(seen, jnp.nan, error)
        predicted = jnp.where(seen[:, None], target, predicted)
        back = orders.inverse(order)
        return Prediction(patches, orders.take(predicted, back), error[:, back], order)
