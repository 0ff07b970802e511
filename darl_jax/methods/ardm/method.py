"""Order-agnostic and upscaling autoregressive diffusion (arXiv 2110.02037).

A network sees some positions of an example of integers and predicts the others, all at once. What
is known is drawn: an order, the step at which each position is generated, and a number t of known
positions, those with a step below t. Data are integers [batch, *shape] with the channels last;
d = prod(shape) positions, of which each is a step, so D = d; every bits/dim is nats / (d ln 2).
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from darl_jax.data.base import Features
from darl_jax.methods.ardm import tracking
from darl_jax.methods.ardm.mixture import LogisticMixture
from darl_jax.methods.ardm.networks import Network, NetworkConfig, Problem
from darl_jax.methods.ardm.outputs import Categorical, Direct, Outputs
from darl_jax.methods.ardm.stages import Stages, Values
from darl_jax.methods.base import (
    Batch,
    Method,
    Metrics,
    ObjectiveConfig,
    Observed,
    average,
)


@dataclasses.dataclass(frozen=True)
class ARDMConfig(ObjectiveConfig):
    """Config of autoregressive diffusion.

    Attributes:
      levels: number of values, K; 0 for those of the data. Fewer than the data's quantize it
        evenly, as 17 do to images of 17 gray levels; more leave values that never occur.
      branching: alternatives of a stage of depth upscaling, b; 0 for an order-agnostic model.
      parametrization: of upscaling's stages: 'data', a logit for each value, or 'direct', one for
        each child.
      mixtures: components of a mixture of discretized logistics, in place of a logit for each value
        of an order-agnostic model; 0 has logits.
      step_draws: of steps and stages: 'uniform', independently for each example, or 'antithetic',
        spread evenly over the batch.
      cross_entropy_weight: of the mean log probability of all unknown positions, beside the bound.
      cross_entropy_scale: 'code', of the published code, or 'paper', which is D times that.
    """

    name: str = "ardm"
    levels: int = 0
    branching: int = 0
    parametrization: Literal["data", "direct"] = "data"
    mixtures: int = 0
    step_draws: Literal["uniform", "antithetic"] = "uniform"
    cross_entropy_weight: float = 0.001
    cross_entropy_scale: Literal["code", "paper"] = "code"

    def __post_init__(self) -> None:
        if self.levels < 0 or self.levels == 1:
            raise ValueError(f"objective.levels={self.levels} must be 0, or at least 2")
        if self.mixtures < 0 or (self.mixtures and self.branching):
            raise ValueError(
                f"objective.mixtures={self.mixtures} must be 0, or positive with "
                "config.objective.branching=0"
            )
        if self.cross_entropy_weight < 0:
            raise ValueError(
                f"objective.cross_entropy_weight={self.cross_entropy_weight} must not be negative"
            )


class Draw(NamedTuple):
    """Known positions of each example.

    Attributes:
      order: the step at which each position is generated, a permutation of 0 .. D-1, positions in
        row-major order.
      step: number of known positions t; known are those with a step below it.
      stage: 0 is the most significant.
    """

    order: Int[Array, "batch position"]
    step: Int[Array, " batch"]
    stage: Int[Array, " batch"]


class ARDMModel(nnx.Module):
    """A network, and the losses of single steps.

    Attributes:
      loss_per_step: L_t [stage, step], a running mean over training examples in bits/dim, whose sum
        is the bound; negative where no example has come yet, of the size of an even share.
    """

    def __init__(self, network: Network, stages: int, steps: int, even_share: float):
        self.network = network
        self.loss_per_step = nnx.Param(jnp.full((stages, steps), -even_share, jnp.float32))

    def losses(self) -> Float[Array, "stage step"]:
        """L_t, with an even share where no example has come."""
        return jnp.abs(self.loss_per_step[...])


@dataclasses.dataclass(frozen=True)
class ARDM(Method[ARDMModel]):
    """Autoregressive diffusion of integers.

    For programs that generate or code with a model:
      levels: number of values, K.
      stages, num_stages: the stages (stages.py), and their number S; 1 if order-agnostic.
      branching: b; 0 if order-agnostic.
      data_shape: of an example, such as (32, 32, 3); positions: their number D.
      logits: of one stage, from what is known.
    A stage begins with `stages.past`, which `stages.children` lists the alternatives of and
    `stages.future` is the result of. The network's input holds the future where a position is known
    and the past elsewhere.

    Raises:
      ValueError: data that are no integers, a network that does not suit them, or upscaling with a
        network that does not see what is known.
    """

    objective: ARDMConfig
    model: NetworkConfig

    default_model = "ardm_unet"

    def __post_init__(self) -> None:
        if self.data.integers is None:
            raise ValueError(
                f"objective.name={self.name!r} models integers, and config.data.name="
                f"{self.data.name!r} makes none"
            )
        if not isinstance(self.model, NetworkConfig):
            raise ValueError(
                f"model.name={self.model.name!r} is no network of config.objective.name="
                f"{self.name!r}, whose names begin with 'ardm_'"
            )
        if self.branching and not self.model.reads_side:
            raise ValueError(
                f"objective.branching={self.branching} must be 0 with config.model.name="
                f"{self.model.name!r}, which does not see which positions are known"
            )
        super().__post_init__()
        self.model.check(self.data_shape)
        _ = self.stages

    @property
    def inputs(self) -> Features:
        feature = self.data.integers.feature
        return {feature: self.data.features[feature]}

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of an example, the channels last."""
        return self.data.features[self.data.integers.feature].shape

    @property
    def positions(self) -> int:
        """Number of positions of an example, D, and steps of a stage."""
        return math.prod(self.data_shape)

    @property
    def levels(self) -> int:
        """Number of values, K."""
        return self.objective.levels or self.data.integers.levels

    @property
    def branching(self) -> int:
        """Alternatives of a stage; 0 of an order-agnostic model."""
        return self.objective.branching

    @property
    def stages(self) -> Stages:
        """Stages of a value."""
        absorbing = self.levels // 2 if self.model.reads_side else self.levels
        return Stages(self.levels, self.branching, 0 if self.branching else absorbing)

    @property
    def num_stages(self) -> int:
        """Number of stages, S."""
        return self.stages.number

    @property
    def outputs(self) -> Outputs:
        """The distributions that the network's outputs stand for."""
        channels = self.data_shape[-1]
        if self.objective.mixtures:
            return LogisticMixture(self.stages, channels, self.objective.mixtures)
        direct = self.branching and self.objective.parametrization == "direct"
        kind = Direct if direct else Categorical
        return kind(self.stages, channels)

    @property
    def problem(self) -> Problem:
        """Sizes of the network."""
        levels = self.levels + (0 if self.model.reads_side else 1)
        return Problem(self.data_shape, levels, self.num_stages, self.outputs.number)

    def init(self, rngs: nnx.Rngs) -> ARDMModel:
        share = math.log2(self.levels) / (self.num_stages * self.positions)
        network = self.model.build(self.problem, rngs)
        return ARDMModel(network, self.num_stages, self.positions, share)

    def trains(self, path: tuple[str, ...]) -> bool:
        return path[0] != "loss_per_step"

    def flops(self) -> int:
        return 3 * self.model.flops(self.problem)

    def integers(self, values: Values) -> Values:
        """Examples of the data as int32 of `levels` values."""
        values = values.astype(np.int32)
        of_data = self.data.integers.levels
        if self.levels >= of_data:
            return values
        return (values * (self.levels - 1) + (of_data - 1) // 2) // (of_data - 1)

    def shown(self, values: Values) -> Values:
        """Integers of `levels` values as the data has them: the inverse of `integers`."""
        of_data = self.data.integers.levels
        if self.levels >= of_data:
            return values
        return (values * (of_data - 1) + (self.levels - 1) // 2) // (self.levels - 1)

    def loss(
        self, model: ARDMModel, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The bound and the cross-entropy term in bits/dim; the key draws what is known."""
        return self.observe(model, batch, key)[:2]

    def observe(
        self, model: ARDMModel, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics, Observed]:
        """Loss and metrics, and each example's loss of its step, in bits/dim."""
        draw_key, dropout_key = jax.random.split(key)
        values = self.integers(batch[self.data.integers.feature])
        draw = self.draw(draw_key, len(values))
        unknown = self.unknown_bits(model, values, draw, dropout_key)
        observed = {
            "cell": draw.stage * self.positions + draw.step,
            "value": unknown / (self.positions - draw.step),
            "counts": batch["mask"],
        }
        return *self._metrics(unknown, draw, batch["mask"]), observed

    def track(self, params: PyTree, observed: Observed) -> PyTree:
        """The losses of single steps, L_t, after the examples of a step."""
        return params | {"loss_per_step": tracking.updated(params["loss_per_step"], **observed)}

    def validate(self, model: ARDMModel, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Metrics without dropout."""
        values = self.integers(batch[self.data.integers.feature])
        draw = self.draw(jax.random.split(key)[0], len(values))
        return self._metrics(self.unknown_bits(model, values, draw), draw, batch["mask"])[1]

    def _metrics(
        self, unknown: Float[Array, " batch"], draw: Draw, mask: Bool[Array, " batch"]
    ) -> tuple[Float[Array, ""], Metrics]:
        config, steps = self.objective, self.num_stages * self.positions
        bound = steps * unknown / (self.positions - draw.step)
        weight = config.cross_entropy_weight
        if config.cross_entropy_scale == "paper":
            weight *= self.positions
        loss = average((bound + weight * unknown)[:, None], mask)
        metrics = {"loss": loss, "bits_per_dim": average(bound[:, None], mask)}
        return loss.compute(), metrics

    def draw(self, key: PRNGKeyArray, examples: int) -> Draw:
        """Orders, steps and stages of a batch, over the global batch whatever the mesh."""
        order_key, step_key, stage_key = jax.random.split(key, 3)
        noise = jax.random.uniform(order_key, (examples, self.positions))
        pick = antithetic if self.objective.step_draws == "antithetic" else jax.random.randint
        step = pick(step_key, (examples,), 0, self.positions)
        stage = pick(stage_key, (examples,), 0, self.num_stages)
        return Draw(jnp.argsort(noise, axis=1), step, stage)

    def unknown_bits(
        self,
        model: ARDMModel,
        values: Int[Array, "batch *shape"],
        draw: Draw,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " batch"]:
        """-log2 p of all positions that are not known, over d: D - t terms, for this stage.

        Divided by D - t it estimates L_t, which S D times the mean of over all steps and stages is
        the bound on bits/dim (eq 2).
        """
        bits = self.position_bits(model, values, draw, key)
        return jnp.sum(jnp.where(draw.order >= draw.step[:, None], bits, 0.0), axis=1)

    def position_bits(
        self,
        model: ARDMModel,
        values: Int[Array, "batch *shape"],
        draw: Draw,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch position"]:
        """-log2 p / d of what the stage makes of each position, known ones too."""
        known = (draw.order < draw.step[:, None]).reshape(values.shape)
        step = draw.step + draw.stage * self.positions
        raw = self.network_outputs(model, values, known, step, draw.stage, key)
        log_prob = self.outputs.log_prob(raw, values, draw.stage)
        return log_prob.reshape(len(values), -1) / (-self.positions * math.log(2.0))

    def logits(
        self,
        model: ARDMModel,
        values: Int[Array, "batch *shape"],
        known: Bool[Array, "batch *shape"],
        step: Int[Array, " batch"],
        stage: int | Int[Array, " batch"],
    ) -> Float[Array, "batch *shape alternative"]:
        """Logits of a stage at all positions, in at least float32, without dropout.

        `values` may be anything whose `stages.future` is right where known and whose `stages.past`
        is right everywhere: the values of the stage so far, or the data; an order-agnostic model
        reads known ones alone. `step` is t + stage D.

        The alternatives are all K values: of an order-agnostic model, and of the data
        parametrization, where a child's probability is the mass of softmax(logits) on its leaves
        [child, child + b^(S - 1 - stage)) over that of all children. With the direct
        parametrization they are the b children. Children that `stages.children` calls illegal have
        finite logits here too, and no probability: mask them.
        """
        every = jnp.broadcast_to(jnp.asarray(stage, jnp.int32), (len(values),))
        return self.outputs.logits(self.network_outputs(model, values, known, step, every), stage)

    def network_outputs(
        self,
        model: ARDMModel,
        values: Int[Array, "batch *shape"],
        known: Bool[Array, "batch *shape"],
        step: Int[Array, " batch"],
        stage: Int[Array, " batch"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch *space output"]:
        """The network's outputs for what is known (section 3.6's channels: m, and the stage)."""
        stages = self.stages
        seen = jnp.where(known, stages.future(values, stage), stages.past(values, stage))
        side = known.astype(jnp.float32)
        if stages.number > 1:
            one_hot = jax.nn.one_hot(stage, stages.number, dtype=side.dtype)
            one_hot = one_hot.reshape(len(values), *(1,) * (values.ndim - 2), stages.number)
            spread = jnp.broadcast_to(one_hot, (*values.shape[:-1], stages.number))
            side = jnp.concatenate([side, spread], axis=-1)
        return model.network(seen, side, step, key)


def antithetic(key: PRNGKeyArray, shape: tuple[int, ...], low: int, high: int) -> Int[Array, "..."]:
    """Integers in [low, high), each as likely as any, spread evenly over a batch.

    g = gcd(batch, range) of them lie one g-th of the range apart, batch / g times; then they are
    shuffled.
    """
    (examples,) = shape
    group = math.gcd(examples, high - low)
    spacing = (high - low) // group
    first_key, shuffle_key = jax.random.split(key)
    first = jax.random.randint(first_key, (examples // group, 1), 0, spacing)
    spread = low + first + spacing * jnp.arange(group)
    return jax.random.permutation(shuffle_key, spread.reshape(-1))
