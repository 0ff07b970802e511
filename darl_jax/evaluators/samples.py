"""Generated images, and completions of held-out images from the first half of their patches."""

import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from darl_jax.data.base import Split, some_records
from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig
from darl_jax.generation.generator import Generator, generating_method
from darl_jax.generation.image_grid import image_grid, near_square
from darl_jax.methods.darl.diffusion import Diffusion


@dataclasses.dataclass(frozen=True)
class SamplesConfig(EvaluatorConfig):
    """Config of samples; models of the squared error generate one of each, their mean.

    Attributes:
      number: unconditional images.
      completed: held-out images to complete from the first half of their patches.
      completions: completions per image.
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
        return Samples(self, context)


class Samples(Evaluator):
    """Generates images with a model in training, from the same noise each time.

    Raises:
      ValueError: the model cannot generate images, or there is none to complete.
    """

    def __init__(self, config: SamplesConfig, context: Context):
        method = generating_method(context.method)
        sampler = method.objective.sampler if isinstance(method, Diffusion) else None
        # All samples of a mean are the same.
        self._number = config.number if sampler else 1
        self._completions = config.completions if sampler else 1
        self._originals = held_out(context.splits.validation, config.completed)
        self._batch_size = context.batch_size
        self._key = context.key
        self._unconditional, self._completing = (
            Generator(context.graphdef, method, sampler=sampler, known=known, mesh=context.mesh)
            for known in (0, math.prod(method.grid) // 2)
        )

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Yields pictures: `samples`, and `completions` with each row's original first."""
        del step
        shape = self._originals.shape[1:]
        nothing = np.zeros((self._number, *shape), np.uint8)
        given = np.repeat(self._originals, self._completions, axis=0)
        samples = self._generate(self._unconditional, params, 0, nothing)
        completed = self._generate(self._completing, params, 1, given)
        rows = completed.reshape(len(self._originals), self._completions, *shape)
        rows = np.concatenate([self._originals[:, None], rows], axis=1)
        yield "samples", image_grid(near_square(samples))
        yield "completions", image_grid(rows, frame_first=True)

    def _generate(
        self, generator: Generator, params: PyTree, salt: int, given: UInt8[np.ndarray, "image ..."]
    ) -> UInt8[np.ndarray, "image ..."]:
        key, numbers = jax.random.fold_in(self._key, salt), np.arange(len(given))
        batches = generator.batches(params, key, numbers, given, batch_size=self._batch_size)
        return np.concatenate([*batches])


def held_out(split: Split, number: int) -> UInt8[np.ndarray, "image height width channel"]:
    """Images of a split, `number` at most, the same in all processes.

    Raises:
      ValueError: no image can be decoded.
    """
    records = some_records(split, number)
    examples = records.eval_examples(np.arange(len(records), dtype=np.int64))
    images = examples["image"][examples.get("mask", np.ones(len(records), bool))]
    if not len(images):
        raise ValueError(f"{split.dataset}, split '{split.split}', has no image that decodes")
    return images
