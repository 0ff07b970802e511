"""The contract between the method and its networks."""

import abc
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.nn.blocks import linear, silu
from darl_jax.nn.dtypes import DTYPES
from darl_jax.nn.flops import linear as linear_flops


@dataclasses.dataclass(frozen=True)
class Problem:
    """Sizes that decide a network's shape.

    Attributes:
      shape: of the data, the channels last.
      levels: integers that the network can be fed, K_in.
      stages: number of stages, S.
      outputs: numbers that it gives for each place, all channels together.
    """

    shape: tuple[int, ...]
    levels: int
    stages: int
    outputs: int

    @property
    def side_channels(self) -> int:
        """Channels of what is known, and of the stage where there are several."""
        return self.shape[-1] + (self.stages if self.stages > 1 else 0)

    @property
    def steps(self) -> int:
        """Steps of all stages, S D."""
        count = self.stages
        for size in self.shape:
            count *= size
        return count


class Network(nnx.Module, abc.ABC):
    """Maps partly known integers to numbers that describe the unknown ones."""

    @abc.abstractmethod
    def __call__(
        self,
        values: Int[Array, "batch *space channel"],
        side: Float[Array, "batch *space side"],
        step: Int[Array, " batch"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch *space output"]:
        """Outputs for each place.

        `side` has what is known, as 0 and 1, and the stage one-hot; `step` is t + stage D; a key
        draws dropout, None has none.
        """


@dataclasses.dataclass(frozen=True)
class NetworkConfig(abc.ABC):
    """Base of the configs of `config.model`.

    Attributes:
      dtype: of the activations, a name in DTYPES; parameters are float32.
    """

    # Whether the network reads what is known and the stage. One that does not is fed a class of its
    # own where nothing is known.
    reads_side: ClassVar[bool] = True

    name: str = ""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype={self.dtype!r} is unknown; choose from {[*DTYPES]}")
        if self.dtype == "float64" and jnp.result_type(float) != jnp.float64:
            raise ValueError("model.dtype='float64' needs JAX_ENABLE_X64=1 in the environment")

    def at_least(self, **least: int) -> None:
        """Checks least values of keys. Raises ValueError."""
        for key, value in least.items():
            if getattr(self, key) < value:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least {value}")

    def check_part(self, part: str, whole: str) -> None:
        """Checks that one key's value is below another's. Raises ValueError."""
        if getattr(self, part) >= getattr(self, whole):
            raise ValueError(
                f"model.{part}={getattr(self, part)} must be below model.{whole}="
                f"{getattr(self, whole)}, of which it is a part"
            )

    @abc.abstractmethod
    def check(self, shape: tuple[int, ...]) -> None:
        """Checks that the data's shape suits the network. Raises ValueError, naming a key."""

    @abc.abstractmethod
    def build(self, problem: Problem, rngs: nnx.Rngs) -> Network:
        """Builds the network with initial parameters."""

    @abc.abstractmethod
    def flops(self, problem: Problem) -> int:
        """FLOPs of a forward pass on one example, by the convention of nn/flops.py."""


def centered(values: Int[Array, "..."], levels: int, dtype: str) -> Float[Array, "..."]:
    """Integers as 2 x / K_in - 1, in which K_in / 2 is 0.

    Section B.4 of the paper has half of that; the published code is followed.
    """
    return values.astype(DTYPES[dtype]) * (2.0 / levels) - 1.0


def sinusoid(angle: Float[Array, "*batch"], width: int) -> Float[Array, "*batch width"]:
    """[sin(p f), cos(p f)] with f_i = exp(-i ln(10000) / (width/2 - 1))."""
    half = width // 2
    frequency = np.exp(-np.arange(half) * (np.log(10_000.0) / (half - 1)))
    phases = angle[..., None] * jnp.asarray(frequency, angle.dtype)
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


class TimeEmbedding(nnx.Module):
    """sinusoid(1000 step / steps) -> Dense -> swish -> Dense, the Dense layers 4 times as wide."""

    def __init__(self, width: int, steps: int, *, dtype: str, rngs: nnx.Rngs):
        self.width, self.steps, self.dtype = width, steps, dtype
        self.up = dense(width, 4 * width, dtype=dtype, rngs=rngs)
        self.out = dense(4 * width, 4 * width, dtype=dtype, rngs=rngs)

    def __call__(self, step: Int[Array, " batch"]) -> Float[Array, "batch time"]:
        wide = jnp.promote_types(DTYPES[self.dtype], jnp.float32)
        waves = sinusoid(step.astype(wide) * (1000.0 / self.steps), self.width)
        return self.out(silu(self.up(waves.astype(DTYPES[self.dtype]))))

    @staticmethod
    def flops(width: int) -> int:
        """FLOPs for one example."""
        return linear_flops(width, 4 * width) + linear_flops(4 * width, 4 * width)


def dense(
    fan_in: int,
    fan_out: int,
    *,
    dtype: str,
    rngs: nnx.Rngs,
    kernel_init: nnx.Initializer | None = None,
) -> nnx.Linear:
    """A dense layer with Flax's own initial weights (truncated normal of variance 1 / fan_in)."""
    init = kernel_init or nnx.initializers.lecun_normal()
    return linear(fan_in, fan_out, dtype=dtype, rngs=rngs, kernel_init=init)
