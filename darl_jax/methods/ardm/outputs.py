"""Distributions that outputs stand for: of all values, or of a stage's children."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.methods.ardm.stages import Children, Stages, data_log_probs, direct_log_probs
from darl_jax.nn.dtypes import at_least_float32

Stage = int | Int[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class Outputs(abc.ABC):
    """Outputs of a network for data of some channels.

    A `stage` is an int, or int32 [batch] with one for each example.
    """

    stages: Stages
    channels: int

    @property
    @abc.abstractmethod
    def number(self) -> int:
        """Outputs for each place, all channels together."""

    @abc.abstractmethod
    def logits(
        self, outputs: Float[Array, "batch *space output"], stage: Stage
    ) -> Float[Array, "batch *space channel alternative"]:
        """Logits in at least float32: of all values, or direct parametrization's of children."""

    def log_probs(
        self,
        outputs: Float[Array, "batch *space output"],
        past: Int[Array, "batch *space channel"],
        stage: Stage,
    ) -> Float[Array, "batch *space channel alternative"]:
        """Log probability of each alternative of a stage that begins with `past`."""
        del past
        return jax.nn.log_softmax(self.logits(outputs, stage), axis=-1)

    def log_prob(
        self,
        outputs: Float[Array, "batch *space output"],
        values: Int[Array, "batch *space channel"],
        stage: Stage,
    ) -> Float[Array, "batch *space channel"]:
        """Log probability of what a stage makes of the data."""
        log_probs = self.log_probs(outputs, self.stages.past(values, stage), stage)
        choice = self.stages.choice(values, stage)
        return jnp.squeeze(jnp.take_along_axis(log_probs, choice[..., None], axis=-1), -1)

    def sample(
        self,
        outputs: Float[Array, "batch *space output"],
        past: Int[Array, "batch *space channel"],
        stage: Stage,
        key: PRNGKeyArray,
    ) -> Int[Array, "batch *space channel"]:
        """Draws what a stage makes of `past`, at all places independently."""
        choice = jax.random.categorical(key, self.log_probs(outputs, past, stage))
        children: Children = self.stages.children(past, stage)
        chosen = jnp.take_along_axis(children.values, choice[..., None], axis=-1)
        return jnp.squeeze(chosen, -1)

    def _by_channel(
        self, outputs: Float[Array, "batch *space output"], *sizes: int
    ) -> Float[Array, "batch ..."]:
        outputs = at_least_float32(outputs)
        return outputs.reshape(*outputs.shape[:-1], self.channels, *sizes)


@dataclasses.dataclass(frozen=True)
class Categorical(Outputs):
    """A logit for each value; those of order-agnostic models, and the data parametrization."""

    @property
    def number(self) -> int:
        return self.channels * self.stages.levels

    def logits(
        self, outputs: Float[Array, "batch *space output"], stage: Stage
    ) -> Float[Array, "batch *space channel level"]:
        del stage
        return self._by_channel(outputs, self.stages.levels)

    def log_probs(
        self,
        outputs: Float[Array, "batch *space output"],
        past: Int[Array, "batch *space channel"],
        stage: Stage,
    ) -> Float[Array, "batch *space channel alternative"]:
        if not self.stages.branching:
            return super().log_probs(outputs, past, stage)
        return data_log_probs(self.logits(outputs, stage), past, stage, self.stages)


@dataclasses.dataclass(frozen=True)
class Direct(Outputs):
    """A logit for each child of each stage; output (c S + stage) b + j is child j's."""

    @property
    def number(self) -> int:
        return self.channels * self.stages.number * self.stages.branching

    def logits(
        self, outputs: Float[Array, "batch *space output"], stage: Stage
    ) -> Float[Array, "batch *space channel child"]:
        every = self._by_channel(outputs, self.stages.number, self.stages.branching)
        if isinstance(stage, int):
            return every[..., stage, :]
        which = stage.reshape(-1, *(1,) * (every.ndim - 1))
        return jnp.squeeze(jnp.take_along_axis(every, which, axis=-2), -2)

    def log_probs(
        self,
        outputs: Float[Array, "batch *space output"],
        past: Int[Array, "batch *space channel"],
        stage: Stage,
    ) -> Float[Array, "batch *space channel child"]:
        legal = self.stages.children(past, stage).legal
        return direct_log_probs(self.logits(outputs, stage), jnp.asarray(legal))
