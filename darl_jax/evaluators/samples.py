"""What a model makes up: images from nothing, and held-out images from their upper half on."""

import dataclasses
import math

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree, UInt8

from darl_jax.generation import Generator
from darl_jax.generation.image_grid import image_grid, near_square
from darl_jax.methods import PatchObjective
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.nn.positions import Grid


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """How many images are made; models of the squared error make one of each, their mean.

    Attributes:
      number: of images from nothing.
      completed: held-out images that are completed from the first half of their patches on.
      completions: of each.
    """

    number: int = 64
    completed: int = 8
    completions: int = 7

    def __post_init__(self) -> None:
        for key in ("number", "completed", "completions"):
            if getattr(self, key) < 1:
                raise ValueError(
                    f"evaluation.samples.{key}={getattr(self, key)} must be at least 1"
                )


class Samples:
    """Draws images with a model in training.

    Args:
      config: how many.
      sampler: how patches are drawn; not read for models of the squared error.
      graphdef: the model without its parameters.
      objective: that it is trained with.
      grid: (rows, columns) of patches.
      originals: held-out images to complete, the same in all processes.
      batch_size: of images that are made at once.
      mesh: where the model is.

    Raises:
      ValueError: the model makes no images.
    """

    def __init__(
        self,
        config: SamplesConfig,
        sampler: SamplerConfig,
        graphdef: nnx.GraphDef[DARL],
        objective: PatchObjective,
        *,
        grid: Grid,
        originals: UInt8[np.ndarray, "image height width channel"],
        batch_size: int,
        mesh: Mesh,
    ):
        # A mean is the same each time.
        random = isinstance(objective, Diffusion)
        self._number = config.number if random else 1
        self._completions = config.completions if random else 1
        self._originals = originals
        self._batch_size = batch_size

        def generator(known: int) -> Generator:
            return Generator(
                graphdef,
                objective,
                grid=grid,
                sampler=sampler if random else None,
                known=known,
                mesh=mesh,
            )

        self._from_nothing, self._completing = generator(0), generator(math.prod(grid) // 2)

    def run(self, params: PyTree, key: PRNGKeyArray) -> dict[str, UInt8[np.ndarray, "_ _ 3"]]:
        """Pictures by name: `samples`, and `completions` with each row's original first."""
        shape = self._originals.shape[1:]
        nothing = np.zeros((self._number, *shape), np.uint8)
        made = self._make(self._from_nothing, params, jax.random.fold_in(key, 0), nothing)
        given = np.repeat(self._originals, self._completions, axis=0)
        completed = self._make(self._completing, params, jax.random.fold_in(key, 1), given)
        rows = completed.reshape(len(self._originals), self._completions, *shape)
        rows = np.concatenate([self._originals[:, None], rows], axis=1)
        return {
            "samples": image_grid(near_square(made)),
            "completions": image_grid(rows, frame_first=True),
        }

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
