"""A tiny model and tiny batches, without files."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from darl_jax.data.base import Splits
from darl_jax.evaluators.base import Context
from darl_jax.methods.darl.diffusion import DiffusionConfig
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.images import ImageMethod, PatchMethod
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import parameters
from tests.methods_on_images import method

MEAN, STD = (0.3,), (0.4,)
VIT = ViTConfig(width=16, depth=3, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")

Batches = Callable[[], Iterator[dict[str, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Tiny:
    """A model of 8 x 8 gray images in 16 patches, with all that an evaluator is made of."""

    graphdef: nnx.GraphDef[DARL]
    params: dict
    mesh: Mesh
    method: PatchMethod

    def context(self, **changes: Any) -> Context:
        return make_context(self.method, self.graphdef, self.mesh, **changes)


def make_context(
    method: ImageMethod, graphdef: nnx.GraphDef, mesh: Mesh, **changes: Any
) -> Context:
    """Parts of a run without splits; the evaluators' batches are given to them."""
    parts = {
        "splits": Splits(None, None),  # type: ignore[arg-type]
        "batch_size": 1,
        "key": jax.random.key(0),
        "initial_params": dict,
    }
    return Context(
        method=method, graphdef=graphdef, data=method.data, mesh=mesh, **(parts | changes)
    )


@functools.cache
def tiny_model(*, denoising: bool = False, seed: int = 0, depth: int = VIT.depth) -> Tiny:
    """One model for all tests, which leave it as it is."""
    objective = DiffusionConfig() if denoising else MSEConfig()
    of = method(objective, dataclasses.replace(VIT, depth=depth))
    model = of.init(nnx.Rngs(seed))
    return Tiny(nnx.split(model)[0], parameters(model), make_mesh(MeshConfig()), of)


def random_images(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 8, 8, 1), np.uint8)


def make_batches(
    images: np.ndarray, batch_size: int, labels: np.ndarray | None = None, padding: int = 0
) -> Batches:
    """One pass; the last batch is filled up with rows of the value `padding` that do not count."""
    labels = np.zeros(len(images), np.int32) if labels is None else labels.astype(np.int32)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            number = len(images[rows])
            rest = batch_size - number
            yield {
                "image": np.pad(images[rows], ((0, rest), *((0, 0),) * 3), constant_values=padding),
                "label": np.pad(labels[rows], (0, rest), constant_values=-1),
                "index": np.pad(np.arange(start, start + number), (0, rest), constant_values=-1),
                "mask": np.arange(batch_size) < number,
                "replaced": np.zeros(batch_size, bool),
            }

    return batches
