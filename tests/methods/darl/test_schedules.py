"""Noise schedules against scipy, the published formulas and a float64 product."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from darl_jax.methods.darl import schedules

DRAWS = 200_000
BETAS = [(0.03, 1.0), (1.0, 1.0), (2.0, 5.0), (1.0, 10.0), (0.5, 0.5)]
FUNCTIONS = ["ddpm", "cosine", "sigmoid", "linear"]
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

# Dvoretzky-Kiefer-Wolfowitz: the empirical distribution function of n draws is further than this
# from the true one, anywhere, with probability below 1e-6.
LARGEST_GAP = math.sqrt(math.log(2 / 1e-6) / (2 * DRAWS))


def _draw(schedule: schedules.Schedule, seed: int = 0) -> np.ndarray:
    samples = schedule.sample(jax.random.key(seed), (DRAWS,))
    assert samples.dtype == jnp.float32
    return np.sort(np.asarray(samples, np.float64))


def _empirical_distribution(samples: np.ndarray, at: np.ndarray) -> np.ndarray:
    return np.searchsorted(samples, at, side="right") / samples.size


@pytest.mark.parametrize(("a", "b"), BETAS)
def test_beta_samples_follow_scipys_distribution(a: float, b: float) -> None:
    samples = _draw(schedules.make_schedule(schedules.ScheduleConfig("beta", a, b)))
    reference = stats.beta(a, b)
    at = reference.ppf(np.linspace(0.001, 0.999, 999))
    # Below the smallest normal number a float32 sample may be 0, so only the values above compare.
    at = at[at >= SMALLEST_NORMAL]
    assert at.size > 900
    gap = np.abs(_empirical_distribution(samples, at) - reference.cdf(at)).max()
    assert gap < LARGEST_GAP


@pytest.mark.parametrize(("a", "b"), BETAS)
def test_beta_quantiles_match_scipys(a: float, b: float) -> None:
    u = np.linspace(0.0, 1.0, 101)
    quantiles = schedules.Beta(a, b).quantile(u)
    assert quantiles.dtype == np.float64
    np.testing.assert_allclose(quantiles, stats.beta.ppf(u, a, b), rtol=1e-10)


def test_small_gammas_keep_their_logarithm() -> None:
    samples = _draw(schedules.Beta(0.03, 1.0), seed=2)
    u = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    expected = np.log10(stats.beta.ppf(u, 0.03, 1.0))
    assert expected[0] < -33
    measured = np.log10(np.quantile(samples, u))
    # Standard error of a sample quantile, carried to log10(gamma) = log10(u) / a.
    error = np.sqrt(u * (1 - u) / DRAWS) / (u * 0.03 * math.log(10))
    assert np.all(np.abs(measured - expected) < 5 * error)


def test_seven_percent_of_the_papers_gammas_underflow_and_stay_in_range() -> None:
    samples = _draw(schedules.make_schedule(schedules.ScheduleConfig()), seed=3)
    assert samples.min() == 0.0
    assert samples.max() <= 1.0
    for threshold in (SMALLEST_NORMAL, 0.01):
        expected = threshold**0.03  # 0.073 and 0.87
        error = math.sqrt(expected * (1 - expected) / DRAWS)
        assert abs(np.mean(samples < threshold) - expected) < 5 * error


@pytest.mark.parametrize("name", ["beta", *FUNCTIONS])
def test_samples_are_float32_even_with_64_bit_types_on(name: str) -> None:
    for a, b in ((np.float64(0.03), 1.0), (1.0, np.float64(10.0)), (np.float64(2.0), 5.0)):
        schedule = schedules.make_schedule(schedules.ScheduleConfig(name, a, b))
        with jax.enable_x64(True):
            samples = schedule.sample(jax.random.key(0), (3, 4))
        assert samples.dtype == jnp.float32
        assert samples.shape == (3, 4)
        jitted = jax.jit(schedule.sample, static_argnums=1)(jax.random.key(0), (3, 4))
        assert jitted.dtype == jnp.float32


@pytest.mark.parametrize("name", ["beta", *FUNCTIONS])
def test_samples_agree_with_the_schedules_own_quantiles(name: str) -> None:
    schedule = schedules.make_schedule(schedules.ScheduleConfig(name, 0.4, 1.0))
    samples = _draw(schedule, seed=4)
    u = np.linspace(0.01, 0.99, 99)
    edges = schedule.quantile(u)
    assert edges.dtype == np.float64
    assert np.all(np.diff(edges) > 0)
    assert np.abs(_empirical_distribution(samples, edges) - u).max() < LARGEST_GAP


@pytest.mark.parametrize(
    ("name", "last", "tolerance"),
    [
        # exp(sum of log(1 - beta)) for Ho et al.'s betas: 4.04e-5, the 4e-5 that they mention.
        ("ddpm", 4.0358e-5, 1e-9),
        ("cosine", 1e-9, 0.0),
        ("sigmoid", 1e-9, 0.0),
        ("linear", 0.0, 0.0),
    ],
)
def test_function_schedules_fall_from_one_to_their_end(
    name: str, last: float, tolerance: float
) -> None:
    schedule = schedules.make_schedule(schedules.ScheduleConfig(name))
    assert isinstance(schedule, schedules.FunctionSchedule)
    s = np.linspace(0.0, 1.0, 2001)
    gamma = schedule.gamma(s)
    assert gamma[0] == 1.0
    assert abs(gamma[-1] - last) <= tolerance
    assert np.all(np.diff(gamma) < 0)
    in_float32 = schedule.gamma(jnp.asarray(s, jnp.float32))
    assert in_float32.dtype == jnp.float32
    # A few roundings at values up to 1; the logarithm of DDPM's gamma reaches -10.
    np.testing.assert_allclose(in_float32, gamma, rtol=0, atol=1e-6)


def test_ddpm_is_the_running_product_of_ho_et_als_alphas() -> None:
    product = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    t = np.arange(1, 1001)
    np.testing.assert_allclose(schedules.DDPM().gamma(t / 1000), product, rtol=1e-12)
    halfway = schedules.DDPM().gamma((t[:-1] + 0.5) / 1000)
    np.testing.assert_allclose(halfway, np.sqrt(product[:-1] * product[1:]), rtol=1e-10)


def test_cosine_and_sigmoid_follow_chens_algorithm() -> None:
    s = np.linspace(0.0, 0.999, 1000)
    np.testing.assert_allclose(
        schedules.Cosine().gamma(s), (1 + np.cos(np.pi * s)) / 2, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        schedules.Cosine(0.2, 1.0, 1.5).gamma(s),
        (np.cos(np.pi / 2 * (0.2 + 0.8 * s)) / np.cos(np.pi / 2 * 0.2)) ** 3,
        rtol=1e-9,
    )
    top = special.expit(3 / 0.9)
    rising = special.expit((-3 + 6 * s) / 0.9)
    np.testing.assert_allclose(
        schedules.Sigmoid(-3.0, 3.0, 0.9).gamma(s),
        (top - rising) / (top - special.expit(-3 / 0.9)),
        rtol=1e-9,
    )


def test_linear_is_uniform() -> None:
    u = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(
        schedules.Linear().quantile(u), schedules.Beta(1.0, 1.0).quantile(u), atol=1e-15
    )


def test_unknown_schedule_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"schedule\.name 'cosin' .* beta, ddpm, cosine, sigmoid, linear"
    ):
        schedules.make_schedule(schedules.ScheduleConfig("cosin"))


@pytest.mark.parametrize(
    ("a", "b", "key"), [(0.0, 1.0, "a"), (1.0, -2.0, "b"), (1.0, math.inf, "b")]
)
def test_beta_parameters_must_be_positive(a: float, b: float, key: str) -> None:
    with pytest.raises(ValueError, match=f"schedule.{key} must be a positive finite number"):
        schedules.make_schedule(schedules.ScheduleConfig("beta", a, b))
