"""What every way to learn has in common.

An objective is called with (model, batch, key) and returns a scalar loss and metrics. It owns the
path from 8-bit pixels to the loss: standardise, patchify, corrupt or mix, compare.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax.numpy as jnp
from clu.metrics import Average
from flax import nnx
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from darl_jax.methods.darl.model import DARL
from darl_jax.nn.orders import Order
from darl_jax.nn.patches import patchify, standardise
from darl_jax.nn.positions import Grid

Batch = Mapping[str, Shaped[Array, "batch ..."]]
Metrics = dict[str, Average]
Model = TypeVar("Model", bound=nnx.Module)


class Prediction(NamedTuple):
    """What a model says of each patch, given those before it; standardised, in raster order."""

    target: Float[Array, "batch patch pixel"]
    predicted: Float[Array, "batch patch pixel"]
    error: Float[Array, "batch patch"]  # squared error of what is predicted
    order: Order  # in which they were predicted


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC, Generic[Model]):
    """A way to learn, for one kind of model.

    Attributes:
      config: the objective's own settings.
      patch_size: rows and columns of a patch.
      mean: of each channel, in units of [0, 1].
      std: of each channel, in units of [0, 1].
    """

    config: Any
    patch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    # First names of the paths of parameters that stay as they are.
    frozen: ClassVar[tuple[str, ...]] = ()
    # First name of parameters whose leading axis counts models that learn side by side.
    stacked: ClassVar[str | None] = None

    @abc.abstractmethod
    def __call__(
        self, model: Model, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss in training, a mean over the examples that count, and its metrics.

        `batch['mask']` says which count. `metrics['loss']` is the loss as a mergeable mean.
        """

    def validate(self, model: Model, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """What is measured on held-out examples: the metrics of training, if not overridden.

        Objectives that train on altered images or labels measure on those of the batch.
        """
        return self(model, batch, key)[1]

    def patches(self, batch: Batch) -> Float[Array, "batch patch pixel"]:
        """Standardised patches of a batch's images."""
        return patchify(standardise(batch["image"], self.mean, self.std), self.patch_size)

    def grid(self, batch: Batch) -> Grid:
        """(rows, columns) of patches of a batch's images."""
        _, height, width, _ = batch["image"].shape
        return height // self.patch_size, width // self.patch_size


@dataclasses.dataclass(frozen=True)
class PatchObjective(Objective[DARL]):
    """A way to learn to predict patches from those before them."""

    denoising: ClassVar[bool]  # whether the patch decoder takes a corrupted patch too

    @abc.abstractmethod
    def predict(self, model: DARL, batch: Batch, key: PRNGKeyArray) -> Prediction:
        """What the model predicts for each patch of each image."""


def average(
    values: Float[Array, "*shape batch patch"],
    mask: Bool[Array, " batch"],
    where: Bool[Array, "*shape batch patch"] | None = None,
) -> Average:
    """A mean over patches of the examples that count, mergeable with those of other batches."""
    weight = jnp.broadcast_to(mask[:, None], values.shape)
    if where is not None:
        weight = weight & where
    # `where`, not a product: what a padded example gives may be non-finite.
    total = jnp.sum(jnp.where(weight, values, 0.0), dtype=jnp.float32)
    return Average(total=total, count=jnp.sum(weight, dtype=jnp.float32))
