"""Stages of depth upscaling: the values between them, and distributions over children.

Section 3.2 and appendix A.1 of arXiv 2110.02037, with blocks of values cut at their left ends
("zero least significant"). A value of K levels is made in S stages of b alternatives, from its most
significant digit in base b to its least. An order-agnostic model is the case of one stage, whose
alternatives are all K values.
"""

import dataclasses
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

# Log mass of values outside the data: finite, for the gradient of a log of no mass is no number.
NO_MASS = -1e30

# NumPy's or JAX's integers.
Values = TypeVar("Values", Integer[np.ndarray, "..."], Integer[Array, "..."])


class Children(NamedTuple):
    """Values that a stage can make of each position."""

    values: Int[np.ndarray | Array, "*shape alternative"]
    legal: Bool[np.ndarray | Array, "*shape alternative"]  # whether a value of the data is below it


@dataclasses.dataclass(frozen=True)
class Stages:
    """Stages of a value; NumPy's arrays give NumPy's.

    Stages are counted from 0, the most significant. A `stage` is an int, or int32 [batch] with one
    for each example.

    Attributes:
      levels: number of values of the data, K.
      branching: alternatives of a stage, b; 0 for order-agnostic, where one stage has all K.
      absorbing: input where nothing is known; upscaling has 0.
    """

    levels: int
    branching: int = 0
    absorbing: int = 0

    def __post_init__(self) -> None:
        if self.branching == 1 or self.branching < 0:
            raise ValueError(
                f"objective.branching={self.branching} must be 0, for an order-agnostic model, or "
                "at least 2"
            )

    @property
    def number(self) -> int:
        """Number of stages S: the least with b^S >= K, in integers."""
        if not self.branching:
            return 1
        number, reached = 1, self.branching
        while reached < self.levels:
            number, reached = number + 1, reached * self.branching
        return number

    @property
    def alternatives(self) -> int:
        """Alternatives of a stage: b, or K of an order-agnostic model."""
        return self.branching or self.levels

    def future(self, values: Values, stage: int | Int[Array, " batch"]) -> Values:
        """Values that a stage makes of the data: (x // b^r) b^r with r = S - 1 - stage."""
        if not self.branching:
            return values
        width = self._width(stage, 0, values)
        return values // width * width

    def past(self, values: Values, stage: int | Int[Array, " batch"]) -> Values:
        """Values that a stage begins with: (x // b^(r+1)) b^(r+1), 0 before the first stage.

        Those of an order-agnostic model are the absorbing value.
        """
        if not self.branching:
            return values * 0 + self.absorbing
        width = self._width(stage, 1, values)
        return values // width * width

    def choice(self, values: Values, stage: int | Int[Array, " batch"]) -> Values:
        """Index of the alternative of a stage that the data takes: (x // b^r) mod b, or x."""
        if not self.branching:
            return values
        return values // self._width(stage, 0, values) % self.branching

    def children(self, past: Values, stage: int | Int[Array, " batch"]) -> Children:
        """Values that a stage can make of what it begins with: past + j b^r.

        Of an order-agnostic model these are all values. A child is legal where its smallest leaf,
        which is the child itself, is below K.
        """
        numpy = np if isinstance(past, np.ndarray) else jnp
        each = numpy.arange(self.alternatives, dtype=past.dtype)
        if not self.branching:
            values = numpy.broadcast_to(each, (*past.shape, self.levels))
        else:
            values = past[..., None] + each * self._width(stage, 0, past[..., None])
        return Children(values, values < self.levels)

    def _width(self, stage: int | Int[Array, " batch"], extra: int, like: Values) -> Array | int:
        """b^(S - 1 - stage + extra), broadcast to values of shape [batch, ...]."""
        if isinstance(stage, int):
            return self.branching ** (self.number - 1 - stage + extra)
        widths = [self.branching**power for power in range(self.number + 1)]
        width = jnp.asarray(widths, like.dtype)[self.number - 1 - stage + extra]
        return width.reshape(-1, *(1,) * (like.ndim - 1))


def direct_log_probs(
    logits: Float[Array, "batch *shape b"], legal: Bool[Array, "batch *shape b"]
) -> Float[Array, "batch *shape b"]:
    """Log probabilities of a stage's children from a logit for each (direct parametrization).

    Children outside the data have no mass, so that the model is one of the data.
    """
    return jax.nn.log_softmax(jnp.where(legal, logits, NO_MASS), axis=-1)


def data_log_probs(
    logits: Float[Array, "batch *shape levels"],
    past: Int[Array, "batch *shape"],
    stage: int | Int[Array, " batch"],
    stages: Stages,
) -> Float[Array, "batch *shape b"]:
    """Log probabilities of a stage's children from a logit for each value (data parametrization).

    The mass of q = softmax(logits) on a child's leaves over that on its parent's, in logarithms: a
    log-sum-exp over the leaves of one minus that of the other. A parent of tiny mass has as exact
    children as any (the published code flattens them below a mass of 1e-10).
    """
    b, number = stages.branching, stages.number
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, b**number - stages.levels)]
    mass = jnp.pad(logits, padding, constant_values=NO_MASS)
    of_stage: list[Array] = []
    for depth in range(number - 1, -1, -1):
        # [..., parent, child]: masses below the nodes of this depth and of the next.
        family = mass.reshape(*mass.shape[:-1], b**depth, b)
        mass = jax.nn.logsumexp(family, axis=-1)
        if isinstance(stage, int) and stage != depth:
            continue
        parent = past // b ** (number - depth)
        children = jnp.take_along_axis(family, parent[..., None, None], axis=-2)
        of_stage.insert(0, jnp.squeeze(children, -2))
    chosen = of_stage[0]
    if not isinstance(stage, int):
        which = stage.reshape(-1, *(1,) * (chosen.ndim - 1))
        for depth, children in enumerate(of_stage[1:], 1):
            chosen = jnp.where(which == depth, children, chosen)
    return jax.nn.log_softmax(chosen, axis=-1)
