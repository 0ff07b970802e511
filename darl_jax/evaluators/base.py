"""The contract between a run and an evaluator.

All processes evaluate together, since the model may be spread over them, and get the same values.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from darl_jax.data import pipeline
from darl_jax.data.base import DataConfig, Split, Splits
from darl_jax.methods.base import Batch, Method
from darl_jax.methods.images import ImageMethod
from darl_jax.nn.attention import Mask
from darl_jax.nn.patches import patchify, standardize
from darl_jax.nn.vit import ViT

# One pass over records in fixed order: a new iterator for each call, every record in it once, rows
# that do not count with `mask` False. Each process yields its own rows of each batch.
HostBatches = Callable[[], Iterable[Mapping[str, Any]]]

# A number; a picture, uint8 (height, width, 3); or arrays for a file.
Value = float | np.ndarray | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Context:
    """Everything about a run that an evaluator may use.

    Attributes:
      method: of the run.
      graphdef: the model without its parameters.
      data: config of the data that is evaluated on, the run's unless the evaluator has its own.
      splits: of that data.
      batch_size: examples that a device step holds, over all devices.
      mesh: of the run.
      key: the same at every step, so that values at two steps differ by the parameters alone.
      initial_params: makes the parameters before training.
    """

    method: Method
    graphdef: nnx.GraphDef
    data: DataConfig
    splits: Splits
    batch_size: int
    mesh: Mesh
    key: PRNGKeyArray
    initial_params: Callable[[], PyTree]

    def on(self, data: DataConfig, splits: Splits) -> "Context":
        """The same on other data."""
        return dataclasses.replace(self, data=data, splits=splits)

    def batches(self, split: Split) -> HostBatches:
        """One pass over a split's records, each exactly once over all processes."""
        return lambda: pipeline.eval_batches(
            split,
            self.data,
            batch_size=self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


class Evaluator(abc.ABC):
    """A question about a model, asked during training or of a checkpoint."""

    @abc.abstractmethod
    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, Value]]:
        """Yields values by name.

        Raises:
          ValueError: the data cannot give a value.
        """

    def summary(self, values: Mapping[str, float]) -> str:
        """The numbers among the values of a run, as one line for the log."""
        return ", ".join(f"{name} {value:.5g}" for name, value in values.items())


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig(abc.ABC):
    """Base of the entries of `config.evaluators`.

    Attributes:
      kind: which evaluator.
      every_steps: steps between two evaluations in training, which ends with one; 0 never runs it.
      data: data of its own; None is the run's.
    """

    # Whether the backbone alone is read, so that any checkpoint of it serves.
    backbone_only: ClassVar[bool] = False

    kind: str = ""
    every_steps: int = 5000
    data: DataConfig | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise ValueError(f"every_steps={self.every_steps} must not be negative; 0 is never")

    def at_least(self, **least: int) -> None:
        """Raises ValueError where a key is below its least value."""
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {value}")

    @abc.abstractmethod
    def build(self, context: Context) -> Evaluator:
        """The evaluator, with its data looked at.

        Raises:
          ValueError: the method or the data does not suit it.
        """


def image_method(method: Method, kind: str) -> ImageMethod:
    """The method, if its model has a ViT backbone on images. Raises ValueError."""
    if not isinstance(method, ImageMethod):
        raise ValueError(
            f"kind {kind!r} reads a backbone on images, and config.objective.name="
            f"{method.name!r} has none"
        )
    return method


def labeled(split: Split) -> Split:
    """The split, if its records have labels. Raises ValueError."""
    if not split.class_names:
        raise ValueError(f"{split.dataset}, split '{split.split}', has no labels")
    return split


def block_outputs(
    backbone: ViT, batch: Batch, *, mean: Sequence[float], std: Sequence[float], mask: Mask
) -> Float[Array, "depth batch token width"]:
    """Every block's output for whole images, whose every patch is an input.

    Args:
      backbone: of any model.
      batch: with `image`.
      mean: of each channel, as the model was trained.
      std: of each channel, as the model was trained.
      mask: the attention.
    """
    images, size = standardize(batch["image"], mean, std), backbone.config.patch_size
    grid = images.shape[1] // size, images.shape[2] // size
    return backbone(patchify(images, size), mask=mask, grid=grid).blocks


def best_block(values: Mapping[str, float]) -> list[str]:
    """The block with the best accuracy, as words for a log line; none without such values."""
    blocks = [name for name in values if name.startswith("accuracy/block_")]
    if not blocks:
        return []
    best = max(blocks, key=lambda name: values[name])
    return [f"best {best} {values[best]:.4f}"]
