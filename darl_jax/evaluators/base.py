"""The contract between a run and an evaluator.

All processes evaluate together, since the model may be sharded over them, and get the same values.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from darl_jax.data import pipeline
from darl_jax.data.base import DataConfig, Split, Splits
from darl_jax.methods.base import Method
from darl_jax.methods.images import ImageMethod
from darl_jax.training.sharding import global_array

# Makes an iterator of one pass over records in fixed order: every record once, padding with `mask`
# False. Each process yields its own rows of each batch.
HostBatches = Callable[[], Iterable[Mapping[str, Any]]]

# A number; a picture, uint8 (height, width, 3); or arrays for a file.
Value = float | np.ndarray | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Context:
    """The parts of a run that an evaluator may use.

    Attributes:
      graphdef: the model without parameters.
      data: config of the data to evaluate on, the run's unless the evaluator has its own.
      batch_size: examples in a step, over all devices.
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
        """Context with other data."""
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
    """Evaluates a model, during training or from a checkpoint."""

    @abc.abstractmethod
    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, Value]]:
        """Yields values by name.

        Raises:
          ValueError: the data cannot give a value.
        """

    def summary(self, values: Mapping[str, float]) -> str:
        """Line for the log with the numbers of a run."""
        return ", ".join(f"{name} {value:.5g}" for name, value in values.items())


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig(abc.ABC):
    """Base of the entries of `config.evaluators`.

    Attributes:
      kind: kind of evaluator, a key of EVALUATORS.
      every_steps: steps between evaluations in training, which ends with one; 0 for never.
      data: data of its own; None for the run's.
    """

    # Whether the evaluator reads the backbone only, so that any checkpoint of it is enough.
    backbone_only: ClassVar[bool] = False

    kind: str = ""
    every_steps: int = 5000
    data: DataConfig | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise ValueError(f"every_steps={self.every_steps} must not be negative; 0 is never")

    def at_least(self, **least: int) -> None:
        """Checks least values of keys. Raises ValueError."""
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {value}")

    @abc.abstractmethod
    def build(self, context: Context) -> Evaluator:
        """Builds the evaluator.

        Raises:
          ValueError: the method or the data does not suit it.
        """


def image_method(method: Method, kind: str) -> ImageMethod:
    """Checks that a method has a ViT backbone on images. Raises ValueError."""
    if not isinstance(method, ImageMethod):
        raise ValueError(
            f"kind {kind!r} reads a backbone on images, and config.objective.name="
            f"{method.name!r} has none"
        )
    return method


def labeled(split: Split) -> Split:
    """Checks that a split has labels. Raises ValueError."""
    if not split.class_names:
        raise ValueError(f"{split.dataset}, split '{split.split}', has no labels")
    return split


def outputs(
    function: Callable[..., Any], params: Any, batches: HostBatches, mesh: Mesh, *arguments: Any
) -> Iterator[Any]:
    """Yields function(params, batch, *arguments) of each batch, on the host."""
    for batch in batches():
        yield jax.device_get(function(params, global_array(dict(batch), mesh), *arguments))


def best_block(values: Mapping[str, float]) -> list[str]:
    """Words for a log line on the block with the best accuracy; empty without accuracies."""
    blocks = [name for name in values if name.startswith("accuracy/block_")]
    if not blocks:
        return []
    best = max(blocks, key=lambda name: values[name])
    return [f"best {best} {values[best]:.4f}"]
