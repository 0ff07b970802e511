"""A table for a network: logits for every input there is, of D = 4 positions and K = 3 levels."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from darl_jax.data.base import DataConfig, Integers
from darl_jax.methods.ardm.method import ARDM, ARDMConfig
from darl_jax.methods.ardm.networks import Network, NetworkConfig

SHAPE, LEVELS = (4, 1), 3
POSITIONS = 4


@dataclasses.dataclass(frozen=True)
class TernaryConfig(DataConfig):
    """Four values of three levels."""

    name: str = "ternary"
    levels: int = LEVELS

    @property
    def features(self):
        return {"value": jax.ShapeDtypeStruct(SHAPE, np.uint8)}

    @property
    def integers(self):
        return Integers("value", self.levels)

    def open(self):
        raise NotImplementedError


class Table(Network):
    """Outputs looked up by (input, what is known, stage), which is all that a network sees."""

    def __init__(self, levels: int, outputs: int, stages: int):
        shape = (levels**POSITIONS, 2**POSITIONS, stages, POSITIONS, outputs)
        values = np.random.default_rng(0).normal(size=shape) * 2
        self.table = nnx.Param(jnp.asarray(values, jnp.float32))
        self.levels = levels

    def __call__(self, values, side, step, key=None):
        del key
        number = jnp.sum(values[..., 0] * self.levels ** jnp.arange(POSITIONS), axis=1)
        known = jnp.sum(side[..., 0].astype(jnp.int32) * 2 ** jnp.arange(POSITIONS), axis=1)
        return self.table[...][number, known, step // POSITIONS]


@dataclasses.dataclass(frozen=True)
class TableConfig(NetworkConfig):
    name: str = "table"

    def check(self, shape):
        assert shape == SHAPE

    def build(self, problem, rngs):
        del rngs
        return Table(problem.levels, problem.outputs, problem.stages)

    def flops(self, problem):
        del problem
        return 0


def table_method(**objective: Any) -> ARDM:
    levels = objective.get("levels", LEVELS)
    return ARDM(ARDMConfig(**objective), TableConfig(), TernaryConfig(levels=levels))


def all_examples(levels: int = LEVELS) -> np.ndarray:
    """Every example there is, [K^4, 4, 1]."""
    return np.array([*itertools.product(range(levels), repeat=POSITIONS)], np.int32)[..., None]


ORDERS = np.array([*itertools.permutations(range(POSITIONS))], np.int32)  # ranks of positions
