"""Alternatives of one symbol: the values of the data, or the children of a value in a stage.

In a stage of depth upscaling a symbol is which of b children a value becomes. With the data
parametrization a child's weight is the sum of the weights of the values below it. Children outside
the data have no leaf, and cost nothing but the 2^-24 that every table keeps.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int32

from darl_jax.codec.tables import MOST_LEAVES, Relevant
from darl_jax.methods.ardm.stages import Stages


@dataclasses.dataclass(frozen=True)
class Alternatives:
    """Symbols of one model, stage by stage.

    Attributes:
      stages: the model's.
      parametrization: of upscaling: "direct", b logits in a stage, or "data", K logits.

    Raises:
      ValueError: a table would have more alternatives than its integers can hold.
    """

    stages: Stages
    parametrization: Literal["direct", "data"] = "data"

    def __post_init__(self) -> None:
        most = self.stages.branching if self._direct else self.stages.levels
        if not 1 < most <= MOST_LEAVES:
            raise ValueError(
                f"a symbol of this model has {most} alternatives, and the codec takes 2 to "
                f"{MOST_LEAVES}: have config.objective.parametrization='direct' and a smaller "
                "config.objective.branching"
            )

    @property
    def _direct(self) -> bool:
        return self.stages.branching > 0 and self.parametrization == "direct"

    def unit(self, stage: int) -> int:
        """Distance of the values that a stage makes: b^(S - 1 - stage), 1 if order-agnostic."""
        return max(1, self.stages.branching) ** (self.stages.number - 1 - stage)

    def produced(
        self, past: Int32[np.ndarray, " n"], symbols: Int32[np.ndarray, " n"], stage: int
    ) -> Int32[np.ndarray, " n"]:
        """Values that symbols make of `past`, the largest one where a bad stream goes beyond."""
        if not self.stages.branching:
            return symbols
        unit = np.int32(self.unit(stage))
        largest = np.int32(self.stages.levels - 1) // unit * unit
        return np.minimum(past + symbols * unit, largest)

    def relevant(
        self, logits: Float64[np.ndarray, "n output"], past: Int32[np.ndarray, " n"], stage: int
    ) -> Relevant:
        """Logits of the values below each alternative, [n, alternatives, leaves of one].

        -inf stands where a value is none of the data.
        """
        if not self.stages.branching:
            return logits[:, :, None]
        children = self.stages.children(past, stage)
        if self._direct:
            return np.where(children.legal, logits, -np.inf)[:, :, None]
        leaves = children.values[:, :, None] + np.arange(self.unit(stage))
        last = self.stages.levels - 1
        below = np.minimum(leaves, last).reshape(len(logits), -1)
        chosen = np.take_along_axis(logits, below, axis=1).reshape(leaves.shape)
        return np.where(leaves <= last, chosen, -np.inf)
