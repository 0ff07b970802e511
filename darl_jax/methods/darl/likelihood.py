"""Evidence lower bound of patches, in nats (Section 3.2 and Appendix E).

    -log p(x) <= sum_{s=2..T} KL(q(x^(s-1) | x^s, x) || p(x^(s-1) | x^s)) - log p(x | x^1)

The prior's term, KL(q(x^T | x) || p(x^T)), is 0 because gamma_T = 0. p has the posterior's mean,
with the denoiser's estimate for x, and one of two fixed variances:

    posterior   that of q (DDPM, arXiv 2006.11239). It ignores the denoiser's uncertainty: for a
                Gaussian of unit variance and its optimal denoiser the bound is Euler's constant / 2
                = 0.289 nats a dimension too high, however large T is.
    analytic    that of q, plus of_x0^2 times the denoiser's mean squared error at s, which is the
                best fixed one (Analytic-DPM, arXiv 2201.06503).

Settled here: at s = 1, where q has no variance, it is 1 - gamma_1 = 1 / T for `posterior`, and for
`analytic` the mean squared error itself.

Tables are float64 on the host; computations from them are float32.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from darl_jax.methods.darl.reverse import Posterior

VARIANCES = ("analytic", "posterior")

# Of standardized pixels. A constant pixel may be predicted without error, and a variance of 0 has
# no density.
_SMALLEST_ERROR = 1e-10

# (x^s, gamma) -> estimate of x.
Denoise = Callable[
    [Float[Array, "replicate batch patch pixel"], Float[Array, "replicate batch patch 1"]],
    Float[Array, "replicate batch patch pixel"],
]
# One value for each dimension of a patch, or one for all.
Variance = Float[np.ndarray | Array, " variance"]
# (estimate of x from x^1, the variance) -> -log p(x | x^1).
Reconstruct = Callable[
    [Float[Array, "replicate batch patch pixel"], Variance],
    Float[Array, "replicate batch patch"],
]


# --- tables --------------------------------------------------------------------------------------


class Bound(NamedTuple):
    """Terms of the bound for one reverse variance, linear in the squared error.

    KL at s, entry s - 2, is the sum over dimensions of constant + weight * squared error.
    """

    constant: Float[np.ndarray | Array, "step variance"]  # nats
    weight: Float[np.ndarray | Array, "step variance"]  # nats for a unit of squared error
    variance: Variance  # of p(x | x^1)


def posterior_bound(table: Posterior) -> Bound:
    """Bound with DDPM's variance: KL = 1/2 (SNR_(s-1) - SNR_s) (x - estimate)^2."""
    weight = 0.5 * _gain(table)
    return Bound(np.zeros_like(weight), weight, table.noise[:1])


def analytic_bound(table: Posterior, error: Float[np.ndarray, "level variance"]) -> Bound:
    """Bound with Analytic-DPM's variance v = sigma^2 + of_x0^2 m, `error` being m at each level.

    With r = of_x0^2 m / sigma^2, KL = 1/2 [log(v / sigma^2) + (sigma^2 + of_x0^2 e^2) / v - 1] is
    1/2 [log(1 + r) - r / (1 + r)] + 1/2 of_x0^2 / sigma^2 / (1 + r) e^2, without cancellation.
    """
    error = np.maximum(error, _SMALLEST_ERROR)
    gain = _gain(table)
    ratio = gain * error[1:]
    constant = 0.5 * (np.log1p(ratio) - ratio / (1.0 + ratio))
    return Bound(constant, 0.5 * gain / (1.0 + ratio), error[0])


def _gain(table: Posterior) -> Float[np.ndarray, "step 1"]:
    """of_x0^2 / sigma^2 at s = 2 .. T, which is SNR_(s-1) - SNR_s."""
    return (table.of_x0[1:] ** 2 / table.variance[1:])[:, None]


def spread_levels(steps: int, number: int) -> Int[np.ndarray, " level"]:
    """`number` of the levels 1 .. `steps`: 1, 2, the last, and others evenly spaced in log s.

    Raises:
      ValueError: `number` is less than 3 and than `steps`.
    """
    if number >= steps:
        return np.arange(1, steps + 1)
    if number < 3:
        raise ValueError(f"levels={number} must be at least 3: 1, 2 and {steps}")
    levels = [1, 2]
    for left in range(number - 2, 0, -1):
        last = levels[-1]
        levels.append(max(last + 1, round(last * (steps / last) ** (1 / left))))
    return np.array(levels)


def interpolate_error(
    s: Int[np.ndarray, " level"] | Float[np.ndarray, " level"],
    levels: Int[np.ndarray, " measured"],
    error: Float[np.ndarray, "measured variance"],
) -> Float[np.ndarray, "level variance"]:
    """Mean squared error m at some s; between measured levels log m is linear in log s.

    `s` need not be an integer: level s of T is level s K / T of K.
    """
    log_error = np.log(np.maximum(error, _SMALLEST_ERROR))
    columns = [np.interp(np.log(s), np.log(levels), column) for column in log_error.T]
    return np.exp(np.stack(columns, axis=1))


def level_groups(steps: int) -> tuple[tuple[int, int], ...]:
    """First and last s of each half decade, from 2 on: (2, 3), (4, 10), (11, 32), (33, 100) ..."""
    groups: list[tuple[int, int]] = []
    first = 2
    while first <= steps:
        last = min(steps, round(10 ** ((len(groups) + 1) / 2)))
        groups.append((first, last))
        first = last + 1
    return tuple(groups)


# --- random levels -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LevelSampler:
    """Distribution of s = 2 .. T, with probability ~ 1 / (s - 1) as the KLs of a good denoiser."""

    edges: Float[np.ndarray, " edge"]  # cumulative probability between levels, rounded to float32
    probability: Float[np.ndarray, " step"]  # of level s at s - 2, differences of the edges

    def sample(self, uniform: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Level at a quantile in [0, 1]."""
        return 2 + jnp.searchsorted(jnp.asarray(self.edges), uniform, side="right")


def level_sampler(steps: int) -> LevelSampler:
    """Sampler of the levels 2 .. `steps`."""
    share = 1.0 / np.arange(1, steps)
    edges = (np.cumsum(share)[:-1] / np.sum(share)).astype(np.float32)
    ends = np.concatenate([[0.0], edges.astype(np.float64), [1.0]])
    return LevelSampler(edges, np.diff(ends))


# --- estimates -----------------------------------------------------------------------------------


def squared_errors(
    denoise: Denoise,
    patches: Float[Array, "batch patch pixel"],
    mask: Bool[Array, " batch"],
    keys: Key[Array, " batch"],
    table: Posterior,
    levels: Int[np.ndarray, " measured"],
) -> Float[Array, "measured pixel"]:
    """Sums of the denoiser's squared error at some levels, over all patches of unmasked images."""

    def at(s: Int[Array, ""]) -> Float[Array, " pixel"]:
        every = jnp.broadcast_to(s, (1, *patches.shape[:2]))
        error = _error_at(denoise, patches, every, _folded(keys[None], s), table)
        return jnp.sum(jnp.where(mask[:, None, None], error[0], 0.0), axis=(0, 1))

    return jax.lax.map(at, jnp.asarray(levels, jnp.int32))


def patch_bounds(
    denoise: Denoise,
    reconstruct: Reconstruct,
    patches: Float[Array, "batch patch pixel"],
    keys: Key[Array, "replicate batch"],
    table: Posterior,
    bounds: tuple[Bound, ...],
    *,
    draws: int,
) -> Float[Array, "bound share replicate batch patch"]:
    """Unbiased estimates of each patch's bounds; all bounds share noise and levels.

    The first share is the reconstruction, which is always evaluated; the others are the KLs of
    `level_groups`. The levels of a patch's draws are stratified: draw k has the k-th part of all
    probability. Draws are evaluated one after another, so that memory does not grow with them.

    Args:
      denoise: the model.
      reconstruct: the last term.
      patches: x, standardized.
      keys: noise of each estimate of each image.
      table: posterior of all levels, at least 2.
      bounds: terms of each variance.
      draws: number of levels s per patch and estimate.
    """
    steps = len(table.noise)
    groups, sampler = level_groups(steps), level_sampler(steps)
    first = jnp.asarray([group[0] for group in groups])
    shape = (*keys.shape, patches.shape[1])

    estimate = denoise(*_corrupted(patches, jnp.ones(shape, int), _folded(keys, 0), table))
    reconstruction = jnp.stack([reconstruct(estimate, bound.variance) for bound in bounds])

    def draw(sums: Array, k: Int[Array, ""]) -> tuple[Array, None]:
        level_keys, noise_keys = _folded(_folded(keys, k), 0), _folded(_folded(keys, k), 1)
        uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, shape[2:])))(level_keys)
        s = sampler.sample((k - 1 + uniform) / draws)
        error = _error_at(denoise, patches, s, noise_keys, table)
        weight = jnp.asarray(1.0 / (draws * sampler.probability), jnp.float32)[s - 2]
        kl = jnp.stack([_divergence(bound, s, error) for bound in bounds]) * weight
        group = jnp.sum(s >= first[:, None, None, None], axis=0) - 1
        own = group == jnp.arange(len(groups))[:, None, None, None]
        return sums + jnp.where(own, kl[:, None], 0.0), None

    none = jnp.zeros((len(bounds), len(groups), *shape), jnp.float32)
    sums, _ = jax.lax.scan(draw, none, jnp.arange(1, draws + 1))
    return jnp.concatenate([reconstruction[:, None], sums], axis=1)


def _divergence(
    bound: Bound, s: Int[Array, "*shape"], error: Float[Array, "*shape pixel"]
) -> Float[Array, "*shape"]:
    """KL in nats at level s >= 2 of each patch, from the squared error of each dimension."""
    constant, weight = (
        jnp.asarray(table, jnp.float32)[s - 2] for table in (bound.constant, bound.weight)
    )
    return jnp.sum(constant + weight * error, axis=-1)


def _error_at(
    denoise: Denoise,
    patches: Float[Array, "batch patch pixel"],
    s: Int[Array, "replicate batch patch"],
    keys: Key[Array, "replicate batch"],
    table: Posterior,
) -> Float[Array, "replicate batch patch pixel"]:
    """Squared error of the denoiser, each patch at a level of its own."""
    return jax.lax.square(denoise(*_corrupted(patches, s, keys, table)) - patches)


def _corrupted(
    patches: Float[Array, "batch patch pixel"],
    s: Int[Array, "replicate batch patch"],
    keys: Key[Array, "replicate batch"],
    table: Posterior,
) -> tuple[Float[Array, "replicate batch patch pixel"], Float[Array, "replicate batch patch 1"]]:
    """x^s = sqrt(gamma) x + sqrt(s / T) noise, and gamma."""
    noise = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, patches.shape[1:])))(keys)
    gamma, of_x, of_noise = (
        jnp.asarray(values, jnp.float32)[s - 1, None]
        for values in (table.signal, np.sqrt(table.signal), np.sqrt(table.noise))
    )
    return of_x * patches + of_noise * noise, gamma


def _folded(
    keys: Key[Array, "replicate batch"], number: Int[Array, ""] | int
) -> Key[Array, "replicate batch"]:
    return jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, number)))(keys)


# --- the last term -------------------------------------------------------------------------------


def gaussian_nats(
    x: Float[Array, "batch patch pixel"],
    mean: Float[Array, "*replicate batch patch pixel"],
    variance: Variance,
) -> Float[Array, "*replicate batch patch"]:
    """-log of a Gaussian's density at each patch x."""
    variance = jnp.asarray(variance, jnp.float32)
    scaled = jax.lax.square(x - mean) / variance
    return 0.5 * jnp.sum(jnp.log(2.0 * jnp.pi * variance) + scaled, axis=-1)


def discretized_nats(
    x: Float[Array, "batch patch pixel"],
    level: Int[Array, "batch patch pixel"],
    half_bin: Float[np.ndarray, " pixel"],
    mean: Float[Array, "*replicate batch patch pixel"],
    variance: Variance,
) -> Float[Array, "*replicate batch patch"]:
    """-log of a Gaussian's probability of each patch's 8-bit pixels (DDPM, Section 3.3).

    A pixel's bin extends half an 8-bit step to either side; the lowest one is open below and the
    highest above, so that the 256 probabilities add up to 1.

    Args:
      x: patches, standardized.
      level: their pixels, 0 to 255.
      half_bin: half a step in standardized units, 1 / (510 std), for each dimension.
    """
    half, std = jnp.asarray(half_bin, jnp.float32), jnp.sqrt(jnp.asarray(variance, jnp.float32))
    lower = jnp.where(level == 0, -jnp.inf, (x - half - mean) / std)
    upper = jnp.where(level == 255, jnp.inf, (x + half - mean) / std)
    # In the upper tail both CDFs are 1 in float32; the mirrored bin has the same probability.
    mirrored = lower + upper > 0.0
    lower, upper = jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper)
    log_upper = jax.scipy.special.log_ndtr(upper)
    log_ratio = jax.scipy.special.log_ndtr(lower) - log_upper
    return -jnp.sum(log_upper + jnp.log(-jnp.expm1(log_ratio)), axis=-1)
