"""Noise schedules against scipy, the published formulas and a float64 product."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from darl_jax.methods.darl import schedules

DRAWS = 200_000
BETAS = [(0.03, 1.0), (1.0, 10.0), (2.0, 5.0)]
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
def test_beta_samples_and_quantiles_follow_scipys_distribution(a: float, b: float) -> None:
    schedule, reference = schedules.Beta(a, b), stats.beta(a, b)
    at = reference.ppf(np.linspace(0.001, 0.999, 999))
    # Below the smallest normal number a float32 sample may be 0, so only the values above compare.
    at = at[at >= SMALLEST_NORMAL]
    assert at.size > 900
    gap = np.abs(_empirical_distribution(_draw(schedule), at) - reference.cdf(at)).max()
    assert gap < LARGEST_GAP
    u = np.linspace(0.0, 1.0, 101)
    quantiles = schedule.quantile(u)
    assert quantiles.dtype == np.float64
    np.testing.assert_allclose(quantiles, reference.ppf(u), rtol=1e-10)


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
    config = schedules.ScheduleConfig(name, np.float64(0.03), 1.0)
    with jax.enable_x64(True):
        samples = schedules.make_schedule(config).sample(jax.random.key(0), (3, 4))
    assert samples.dtype == jnp.float32
    assert samples.shape == (3, 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_agree_with_the_schedules_own_quantiles(name: str) -> None:
    schedule = schedules.make_schedule(schedules.ScheduleConfig(name))
    samples = _draw(schedule, seed=4)
    u = np.linspace(0.01, 0.99, 99)
    edges = schedule.quantile(u)
    assert edges.dtype == np.float64
    assert np.all(np.diff(edges) > 0)
    assert np.abs(_empirical_distribution(samples, edges) - u).max() < LARGEST_GAP


# exp(sum of log(1 - beta)) for Ho et al.'s betas: 4.04e-5, the 4e-5 that they mention.
@pytest.mark.parametrize(
    ("name", "last"), [("ddpm", 4.0358e-5), ("cosine", 1e-9), ("sigmoid", 1e-9), ("linear", 0.0)]
)
def test_function_schedules_fall_from_one_to_their_end(name: str, last: float) -> None:
    schedule = schedules.FUNCTIONS[name]
    s = np.linspace(0.0, 1.0, 2001)
    gamma = schedule.gamma(s)
    assert gamma[0] == 1.0
    assert gamma[-1] == pytest.approx(last, rel=1e-4)
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


def test_linear_cosine_and_sigmoid_follow_their_formulas() -> None:
    s = np.linspace(0.0, 0.999, 1000)
    np.testing.assert_array_equal(schedules.Linear().gamma(s), 1 - s)
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
