"""What every way to learn has in common.

An objective is called with (model, batch, key) and returns a scalar loss and metrics. It owns the
path from 8-bit pixels to the loss: standardise, patchify, corrupt, compare.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from clu.metrics import Average
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from darl_jax.models.darl import DARL

Batch = Mapping[str, Shaped[Array, "batch ..."]]
Metrics = dict[str, Average]


class Prediction(NamedTuple):
    """What a model says of each patch, given those before it; standardised pixels."""

    target: Float[Array, "batch patch pixel"]
    predicted: Float[Array, "batch patch pixel"]
    error: Float[Array, "batch patch"]  # squared error of what is predicted


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """A way to learn.

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

    denoising: ClassVar[bool]  # whether the patch decoder takes a corrupted patch too

    @abc.abstractmethod
    def __call__(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss, a mean over the examples that `batch['mask']` counts, and its metrics.

        `metrics['loss']` is the loss as a mergeable mean.
        """

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
