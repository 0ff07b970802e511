"""Mixture of discretized logistics over ordered values (sections 5 and D of arXiv 2110.02037)."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.methods.ardm.outputs import Outputs, Stage
from darl_jax.nn.dtypes import at_least_float32

_LEAST_LOG_SCALE = -7.0
_SMALL_WIDTH = 1e-3
_UNIFORM_MARGIN = 1e-5  # uniform numbers stay so far from 0 and 1, where logistic ones are infinite


class Parameters(NamedTuple):
    """Parameters of a mixture, on values scaled to [-1, 1]."""

    log_weights: Float[Array, "batch *space 1 component"]  # shared by the channels
    means: Float[Array, "batch *space channel component"]
    log_scales: Float[Array, "batch *space channel component"]


@dataclasses.dataclass(frozen=True)
class LogisticMixture(Outputs):
    """Outputs [weights | means, log scales of channel 0 | of channel 1 | ..], each `components`.

    Value x has the mass of each logistic between (2x - 1) / (K - 1) - 1 and (2x + 1) / (K - 1) - 1,
    the first and the last value all that is outside. Outputs of 0 are about uniform. Settled here:
    exact in log space, where the published code has a floor of 1e-12, and with one value at either
    edge, where it takes several for K = 65536.
    """

    components: int

    @property
    def number(self) -> int:
        return self.components * (1 + 2 * self.channels)

    def parameters(self, outputs: Float[Array, "batch *space output"]) -> Parameters:
        """Weights, means and scales, spread evenly where the outputs are 0."""
        outputs, n = at_least_float32(outputs), self.components
        weights = jax.nn.log_softmax(outputs[..., None, :n], axis=-1)
        rest = outputs[..., n:].reshape(*outputs.shape[:-1], self.channels, 2, n)
        means = rest[..., 0, :] + jnp.linspace(-1 + 1 / n, 1 - 1 / n, n, dtype=outputs.dtype)
        log_scales = jnp.maximum(rest[..., 1, :] - math.log(n), _LEAST_LOG_SCALE)
        return Parameters(weights, means, log_scales)

    def log_prob(
        self,
        outputs: Float[Array, "batch *space output"],
        values: Int[Array, "batch *space channel"],
        stage: Stage,
    ) -> Float[Array, "batch *space channel"]:
        del stage
        return self._log_prob(self.parameters(outputs), values[..., None])

    def logits(
        self, outputs: Float[Array, "batch *space output"], stage: Stage
    ) -> Float[Array, "batch *space channel level"]:
        """Log probabilities of all values; K times the size of the data."""
        del stage
        found = self.parameters(outputs)
        each = jax.tree.map(lambda x: x[..., None, :], found)
        levels = jnp.arange(self.stages.levels)[:, None]
        shape = (*found.means.shape[:-1], self.stages.levels, 1)
        return self._log_prob(each, jnp.broadcast_to(levels, shape))

    def sample(
        self,
        outputs: Float[Array, "batch *space output"],
        past: Int[Array, "batch *space channel"],
        stage: Stage,
        key: PRNGKeyArray,
    ) -> Int[Array, "batch *space channel"]:
        """A component by its weight, its logistic number, rounded to a value."""
        del stage
        found, (which_key, place_key) = self.parameters(outputs), jax.random.split(key)
        weights = jnp.broadcast_to(found.log_weights, found.means.shape)
        which = jax.random.categorical(which_key, weights)[..., None]
        margin, dtype = _UNIFORM_MARGIN, found.means.dtype
        u = jax.random.uniform(place_key, past.shape, dtype, margin, 1.0 - margin)
        mean, log_scale = (
            jnp.squeeze(jnp.take_along_axis(x, which, axis=-1), -1)
            for x in (found.means, found.log_scales)
        )
        place = jnp.clip(mean + jnp.exp(log_scale) * jax.scipy.special.logit(u), -1.0, 1.0)
        return jnp.rint((place + 1) / 2 * (self.stages.levels - 1)).astype(past.dtype)

    def _log_prob(
        self, found: Parameters, values: Int[Array, "*batch 1"]
    ) -> Float[Array, "*batch"]:
        last = self.stages.levels - 1
        inverse = jnp.exp(-found.log_scales)
        left, right = (
            ((2 * values + end).astype(inverse.dtype) / last - 1 - found.means) * inverse
            for end in (-1, 1)
        )
        # sigmoid(right) - sigmoid(left) = sigmoid(right) sigmoid(-left) (1 - exp(left - right)).
        log_width = math.log(2 / last) - found.log_scales
        # Two terms of its series where the width is small, for exp(-width) rounds there.
        width = jnp.exp(log_width)
        wide = width > _SMALL_WIDTH
        exact = jnp.log(-jnp.expm1(-jnp.where(wide, width, 1.0)))
        between = jnp.where(wide, exact, log_width - width / 2)
        below, above = jax.nn.log_sigmoid(right), jax.nn.log_sigmoid(-left)
        inside = below + above + between
        edge = jnp.where(values == 0, below, jnp.where(values == last, above, inside))
        return jax.nn.logsumexp(found.log_weights + edge, axis=-1)
