"""What a model makes up: images from nothing, and held-out images from their upper half on."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree, UInt8

from darl_jax.data.base import Split, some_records
from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig
from darl_jax.generation.generator import Generator, generating_method
from darl_jax.generation.image_grid import image_grid, near_square
from darl_jax.methods.base import Method
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.model import DARL


@dataclasses.dataclass(frozen=True)
class SamplesConfig(EvaluatorConfig):
    """Images that are generated; models of the squared error make one of each, their mean.

    Attributes:
      number: images from nothing.
      completed: held-out images that are completed from the first half of their patches on.
      completions: completions of each.
    """

    kind: str = "samples"
    number: int = 64
    completed: int = 8
    completions: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(number=1, completed=1, completions=1)

    def build(self, context: Context) -> "Samples":
        """Reads the images to complete."""
        return Samples(
            self,
            context.graphdef,
            context.method,
            originals=held_out(context.splits.validation, self.completed),
            batch_size=context.batch_size,
            key=context.key,
            mesh=context.mesh,
        )


class Samples(Evaluator):
    """Draws images with a model in training.

    Args:
      config: numbers of images.
      graphdef: the model without its parameters.
      method: that it is trained with.
      originals: held-out images to complete, the same in all processes.
      batch_size: images that are made at once.
      key: of the noise, the same each time.
      mesh: where the model is.

    Raises:
      ValueError: the model makes no images.
    """

    def __init__(
        self,
        config: SamplesConfig,
        graphdef: nnx.GraphDef[DARL],
        method: Method,
        *,
        originals: UInt8[np.ndarray, "image height width channel"],
        batch_size: int,
        key: PRNGKeyArray,
        mesh: Mesh,
    ):
        method = generating_method(method)
        sampler = method.objective.sampler if isinstance(method, Diffusion) else None
        # A mean is the same each time.
        self._number = config.number if sampler else 1
        self._completions = config.completions if sampler else 1
        self._originals = originals
        self._batch_size = batch_size
        self._key = key

        def generator(known: int) -> Generator:
            return Generator(
                graphdef,
                method,
                sampler=sampler,
                known=known,
                mesh=mesh,
            )

        self._from_nothing, self._completing = generator(0), generator(math.prod(method.grid) // 2)

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Yields pictures: `samples`, and `completions` with each row's original first."""
        del step
        shape = self._originals.shape[1:]
        nothing = np.zeros((self._number, *shape), np.uint8)
        made = self._make(self._from_nothing, params, jax.random.fold_in(self._key, 0), nothing)
        given = np.repeat(self._originals, self._completions, axis=0)
        completed = self._make(self._completing, params, jax.random.fold_in(self._key, 1), given)
        rows = completed.reshape(len(self._originals), self._completions, *shape)
        rows = np.concatenate([self._originals[:, None], rows], axis=1)
        yield "samples", image_grid(near_square(made))
        yield "completions", image_grid(rows, frame_first=True)

    def _make(
        self,
        generator: Generator,
        params: PyTree,
        key: PRNGKeyArray,
        given: UInt8[np.ndarray, "image height width channel"],
    ) -> UInt8[np.ndarray, "image height width channel"]:
        numbers = np.arange(len(given))
        return np.concatenate(
            [*generator.batches(params, key, numbers, given, batch_size=self._batch_size)]
        )


def held_out(split: Split, number: int) -> UInt8[np.ndarray, "image height width channel"]:
    """Some images of a split, the same in all processes.

    Raises:
      ValueError: the split has none.
    """
    records = some_records(split, number)
    examples = records.eval_examples(np.arange(len(records), dtype=np.int64))
    images = examples["image"][examples.get("mask", np.ones(len(records), bool))]
    if not len(images):
        raise ValueError(f"{split.dataset}, split '{split.split}', has no image that decodes")
    return images
