"""Noise schedules: distributions of the diffusion level gamma.

Section 3.3, Figures 2 and 9 of arXiv 2403.05196. A patch is corrupted as
`x_s = sqrt(gamma) x + sqrt(1 - gamma) noise`: gamma = 1 is the clean patch and gamma = 0 is noise
alone. The paper draws gamma from Beta(a, b); a schedule given as a decreasing function gamma(s) of
s ~ U[0, 1] has the quantile function `gamma(1 - u)`.

Samples are float32, whatever the compute dtype and `jax_enable_x64`. With the paper's Beta(0.03, 1)
87% of the draws are below 0.01, and 7% are below the smallest normal float32 and become 0. Those
zeros are right (pure noise): clamp gamma before a division or a logarithm.
"""

import abc
import dataclasses
import functools
import math
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import special

Values = TypeVar("Values", jax.Array, np.ndarray)


@runtime_checkable
class Schedule(Protocol):
    """Distribution of gamma on [0, 1]."""

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Draws independent gammas of the given shape, float32."""

    def quantile(self, u: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Inverse of the cumulative distribution at u in [0, 1], float64."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Config of a schedule. The default is the paper's for representation learning (Section 4.1).

    Attributes:
      name: one of "beta", "ddpm", "cosine", "sigmoid", "linear".
      a, b: parameters of "beta", Beta(a, b).
    """

    name: str = "beta"
    a: float = 0.03
    b: float = 1.0


@dataclasses.dataclass(frozen=True)
class Beta:
    """gamma ~ Beta(a, b): density proportional to gamma^(a-1) (1-gamma)^(b-1) (Section 3.3).

    If a or b is 1 the distribution function inverts in closed form, and a sample is computed in log
    space from an exponential variate E = -log U: gamma = exp(-E / a) for Beta(a, 1) and
    1 - gamma = exp(-E / b) for Beta(1, b). A general sampler forms U^(1/a) from two gamma variates,
    with a rejection loop for every patch.

    Raises:
      ValueError: a or b is not a positive finite number.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        for key, value in (("a", self.a), ("b", self.b)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"objective.schedule.{key} must be a positive finite number for a Beta "
                    f"schedule, got {value!r}"
                )

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        # float(): a NumPy scalar would promote the float32 sample under jax_enable_x64.
        a, b = float(self.a), float(self.b)
        if b == 1.0:
            return jnp.exp(-jax.random.exponential(key, shape, jnp.float32) / a)
        if a == 1.0:
            return -jnp.expm1(-jax.random.exponential(key, shape, jnp.float32) / b)
        return jax.random.beta(key, a, b, shape, jnp.float32)

    def quantile(self, u: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        u = np.asarray(u, np.float64)
        if self.b == 1.0:
            return np.asarray(u ** (1.0 / self.a))
        if self.a == 1.0:
            with np.errstate(divide="ignore"):  # u = 1 is gamma = 1, by way of log(0) = -inf
                return np.asarray(-np.expm1(np.log1p(-u) / self.b))
        return np.asarray(special.betaincinv(self.a, self.b, u))


class FunctionSchedule(abc.ABC):
    """Schedule given by a decreasing function gamma(s) of s ~ U[0, 1]; s = 0 is the clean patch."""

    @abc.abstractmethod
    def gamma(self, s: Values) -> Values:
        """Gamma at s in [0, 1]: in JAX for a JAX array, in float64 NumPy for a NumPy array."""

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return self.gamma(jax.random.uniform(key, shape, jnp.float32))

    def quantile(self, u: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        return np.asarray(self.gamma(np.asarray(1.0 - np.asarray(u, np.float64))))


@dataclasses.dataclass(frozen=True)
class DDPM(FunctionSchedule):
    """Linear-beta schedule of DDPM (Ho et al. 2020, Section 4), "DDPM" in Figure 9.

    gamma(t / steps) is the product of 1 - beta over the first t steps, with beta linear from
    beta_start to beta_end. Settled here: between steps log gamma is interpolated linearly in s,
    with gamma(0) = 1, so that s is continuous as in the paper's s ~ U[0, 1].
    """

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    @functools.cached_property
    def _log_gamma_at_steps(self) -> Float[np.ndarray, " steps_and_one"]:
        betas = np.linspace(self.beta_start, self.beta_end, self.steps, dtype=np.float64)
        return np.concatenate([np.zeros(1), np.cumsum(np.log1p(-betas))])

    def gamma(self, s: Values) -> Values:
        grid = np.arange(self.steps + 1) / self.steps
        if isinstance(s, np.ndarray):
            return np.exp(np.interp(s, grid, self._log_gamma_at_steps))
        log_gamma = jnp.asarray(self._log_gamma_at_steps, s.dtype)
        return jnp.exp(jnp.interp(s, jnp.asarray(grid, s.dtype), log_gamma))


@dataclasses.dataclass(frozen=True)
class Cosine(FunctionSchedule):
    """Cosine schedule of Chen 2023 (arXiv 2301.10972, Algorithm 1), with its defaults.

    cos(pi/2 (start + s (end - start)))^(2 tau), shifted and scaled to go from 1 to 0, and clipped
    to [clip_min, 1].
    """

    start: float = 0.0
    end: float = 1.0
    tau: float = 1.0
    clip_min: float = 1e-9

    def gamma(self, s: Values) -> Values:
        xp = _namespace(s)
        first, last = (math.cos(x * math.pi / 2) ** (2 * self.tau) for x in (self.start, self.end))
        angle = (self.start + s * (self.end - self.start)) * (math.pi / 2)
        # The cosine of a rounded pi/2 may be slightly negative, which has no real power.
        value = xp.maximum(xp.cos(angle), 0.0) ** (2 * self.tau)
        return xp.clip((value - last) / (first - last), self.clip_min, 1.0)


@dataclasses.dataclass(frozen=True)
class Sigmoid(FunctionSchedule):
    """Sigmoid schedule of Chen 2023 (arXiv 2301.10972, Algorithm 1), with its defaults.

    sigmoid(-(start + s (end - start)) / tau), shifted and scaled to go from 1 to 0, and clipped to
    [clip_min, 1].
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0
    clip_min: float = 1e-9

    def gamma(self, s: Values) -> Values:
        xp = _namespace(s)
        first, last = (1.0 / (1.0 + math.exp(x / self.tau)) for x in (self.start, self.end))
        value = 1.0 / (1.0 + xp.exp((self.start + s * (self.end - self.start)) / self.tau))
        return xp.clip((value - last) / (first - last), self.clip_min, 1.0)


@dataclasses.dataclass(frozen=True)
class Linear(FunctionSchedule):
    """gamma(s) = 1 - s, the linear decay of l-DAE (Chen et al. 2024, arXiv 2401.14404).

    The square of l-DAE's signal coefficient, gamma here, decays linearly from 1 to 0. Settled here:
    taken as l-DAE writes it, which makes gamma uniform, that is Beta(1, 1). Section B.5 says of the
    linear schedule of Figure 9 that it "samples mostly from very small noise regions", which a
    uniform gamma does not.
    """

    def gamma(self, s: Values) -> Values:
        return 1.0 - s


FUNCTIONS: dict[str, FunctionSchedule] = {
    "ddpm": DDPM(),
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "linear": Linear(),
}


def make_schedule(config: ScheduleConfig) -> Schedule:
    """Schedule of a config.

    Raises:
      ValueError: the name is unknown, or a parameter of Beta(a, b) is not positive.
    """
    if config.name == "beta":
        return Beta(config.a, config.b)
    if config.name not in FUNCTIONS:
        names = ", ".join(["beta", *FUNCTIONS])
        raise ValueError(
            f"objective.schedule.name {config.name!r} is unknown; the schedules are {names}"
        )
    return FUNCTIONS[config.name]


def _namespace(values: jax.Array | np.ndarray) -> Any:
    return np if isinstance(values, np.ndarray) else jnp
