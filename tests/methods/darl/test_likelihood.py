"""The evidence lower bound on Gaussians, whose entropy and optimal denoiser are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from darl_jax.methods.darl.likelihood import (
    analytic_bound,
    discretized_nats,
    gaussian_nats,
    interpolate_error,
    level_groups,
    level_sampler,
    patch_bounds,
    posterior_bound,
    spread_levels,
    squared_errors,
)
from darl_jax.methods.darl.reverse import posterior

STEPS = 1000
MEAN = np.array([0.3, -1.0, 0.0, 0.5])
VARIANCE = np.array([0.04, 0.5, 1.0, 3.0])


def optimal_error(variance, steps):
    """E (x - E[x | x^s])^2 at s = 1 .. steps, of each dimension of a Gaussian."""
    gamma = 1 - np.arange(1, steps + 1)[:, None] / steps
    return variance * (1 - gamma) / (gamma * variance + 1 - gamma)


def expected_terms(error, reverse_error, steps):
    """Each level's expected term for a denoiser of known error, from the definitions.

    Args:
      error: of the denoiser, (steps, dimension).
      reverse_error: m_s that the reverse variance is made with, None for DDPM's variance.
      steps: T.
    """
    s = np.arange(2, steps + 1)[:, None]
    gamma, before = 1 - s / steps, 1 - (s - 1) / steps
    alpha = gamma / before
    variance = (1 - before) / (1 - gamma) * (1 - alpha)
    of_x0 = np.sqrt(before) * (1 - alpha) / (1 - gamma)
    reverse = variance if reverse_error is None else variance + of_x0**2 * reverse_error[1:]
    kl = 0.5 * (np.log(reverse / variance) + (variance + of_x0**2 * error[1:]) / reverse - 1)
    last = 1 / steps if reverse_error is None else reverse_error[0]
    reconstruction = 0.5 * (np.log(2 * np.pi * last) + error[0] / last)
    return np.concatenate([reconstruction[None], kl])


def denoise(x_s, gamma):
    """E[x | x^s] in closed form."""
    gain = jnp.sqrt(gamma) * VARIANCE / (gamma * VARIANCE + 1 - gamma)
    return (MEAN + gain * (x_s - jnp.sqrt(gamma) * MEAN)).astype(jnp.float32)


@pytest.fixture(scope="module")
def patches():
    """64 images of 256 patches of 4 dimensions."""
    noise = np.random.default_rng(0).normal(size=(64, 256, 4))
    return jnp.asarray(MEAN + np.sqrt(VARIANCE) * noise, jnp.float32)


def keys(seed, *shape):
    return jax.random.split(jax.random.key(seed), shape)


# --- the bound of the optimal denoiser -----------------------------------------------------------


def test_the_estimate_is_the_analytic_bound_up_to_its_monte_carlo_error(patches):
    table, error = posterior(STEPS), optimal_error(VARIANCE, STEPS)
    isotropic = error.mean(axis=1, keepdims=True)
    bounds = analytic_bound(table, error), analytic_bound(table, isotropic), posterior_bound(table)
    found = np.float64(
        patch_bounds(
            denoise,
            lambda mean, variance: gaussian_nats(patches, mean, variance),
            patches,
            keys(1, 2, 64),
            table,
            bounds,
            draws=8,
        )
    )
    groups = ((1, 1), *level_groups(STEPS))
    for nats, reverse_error in zip(found, (error, isotropic, None), strict=True):
        terms = expected_terms(error, reverse_error, STEPS).sum(axis=1)
        # Of two estimates of a patch the mean, for both are of the same data.
        of_patch = nats.mean(axis=1).reshape(len(groups), -1)
        standard_error = of_patch.std(axis=1, ddof=1) / np.sqrt(of_patch.shape[1])
        expected = [terms[first - 1 : last].sum() for first, last in groups]
        assert np.all(np.abs(of_patch.mean(axis=1) - expected) < 4 * standard_error)
        total = of_patch.sum(axis=0)
        standard_error = total.std(ddof=1) / np.sqrt(len(total))
        assert standard_error < 0.03  # nats of 4 dimensions: the gap of 0.289 would be seen
        assert abs(total.mean() - terms.sum()) < 4 * standard_error


def test_posterior_variance_is_half_of_eulers_constant_above_the_entropy_of_unit_variance():
    gaps = []
    for steps in (10, 100, 1000, 10_000):
        error = optimal_error(np.ones(1), steps)
        bound = posterior_bound(posterior(steps))
        kl = np.sum(bound.constant + bound.weight * error[1:])
        reconstruction = 0.5 * (np.log(2 * np.pi * bound.variance) + error[0] / bound.variance)
        gaps.append(float(kl + reconstruction[0] - 0.5 * np.log(2 * np.pi * np.e)))
    distance = 0.5 * np.euler_gamma - np.array(gaps)
    # H_(T-1) - log T is Euler's constant less 1 / (2 T).
    np.testing.assert_allclose(distance, 0.25 / np.array([10, 100, 1000, 10_000]), rtol=0.05)
    assert round(gaps[-1], 3) == 0.289


def analytic_total(error, reverse_error, steps):
    """Expected nats of each dimension."""
    bound = analytic_bound(posterior(steps), reverse_error)
    kl = np.sum(bound.constant + bound.weight * error[1:], axis=0)
    return kl + 0.5 * (np.log(2 * np.pi * bound.variance) + error[0] / bound.variance)


@pytest.mark.parametrize("steps", [2, 10, 1000])
@pytest.mark.parametrize("smallest", [0.04, 1e-5])
def test_analytic_variance_of_each_dimension_reaches_the_entropy_and_one_for_all_does_not(
    steps, smallest
):
    variance = np.array([smallest, *VARIANCE[1:]])
    entropy = 0.5 * np.log(2 * np.pi * np.e * variance)
    error = optimal_error(variance, steps)
    # The telescoping product leaves no gap at any T: what is left is float64.
    np.testing.assert_allclose(analytic_total(error, error, steps), entropy, rtol=1e-10)
    isotropic = np.broadcast_to(error.mean(axis=1, keepdims=True), error.shape)
    gap = np.sum(analytic_total(error, isotropic, steps) - entropy)
    expected = expected_terms(error, isotropic, steps).sum() - entropy.sum()
    assert gap == pytest.approx(expected, rel=1e-6)
    # Small where all variances are far above 1 / T, for noise that is left is then in all alike.
    assert gap > (1.0 if smallest == 1e-5 else 0.004)


def test_a_denoiser_that_makes_no_error_has_a_finite_bound():
    bound = analytic_bound(posterior(10), np.zeros((10, 1)))
    for values in bound:
        assert np.all(np.isfinite(np.float32(values)))
    assert bound.variance > 0.0


# --- the denoiser's error ------------------------------------------------------------------------


def test_errors_are_those_of_the_denoiser_at_each_level_over_images_that_count(patches):
    levels = spread_levels(STEPS, 8)
    mask = jnp.arange(64) < 48
    padded = jnp.where(mask[:, None, None], patches, jnp.nan)
    found = squared_errors(denoise, padded, mask, keys(2, 64), posterior(STEPS), levels)
    expected = optimal_error(VARIANCE, STEPS)[levels - 1]
    # A mean of 48 x 256 squares of Gaussians has a relative standard error of sqrt(2 / n) = 0.013.
    np.testing.assert_allclose(found / (48 * 256), expected, rtol=0.06)


@pytest.mark.parametrize(("steps", "number"), [(1000, 3), (1000, 32), (1000, 999), (10, 7)])
def test_levels_are_spread_evenly_over_log_s(steps, number):
    levels = spread_levels(steps, number)
    assert len(levels) == number
    assert {1, 2, steps} <= set(levels)
    assert np.all(np.diff(levels) > 0)
    # Ratios of neighbors differ by no more than rounding to whole numbers can make them.
    low, high = (levels[1:] - 0.5) / (levels[:-1] + 0.5), (levels[1:] + 0.5) / (levels[:-1] - 0.5)
    apart = np.diff(levels) > 1
    if apart.any():
        assert low[apart].max() <= high[apart].min() * 1.01


def test_as_many_levels_as_steps_are_all_of_them_and_fewer_than_three_an_error():
    for number in (10, 11, 1000):
        np.testing.assert_array_equal(spread_levels(10, number), np.arange(1, 11))
    with pytest.raises(ValueError, match="levels=2 must be at least 3"):
        spread_levels(10, 2)


def test_between_measured_levels_the_error_follows_a_power_law():
    levels = spread_levels(1000, 12)
    law = lambda s: np.stack([0.3 * s**0.8, 2e-3 * s**1.1], axis=1)  # noqa: E731
    s = np.arange(1, 1001)
    found = interpolate_error(s, levels, law(levels.astype(float)))
    np.testing.assert_allclose(found, law(s.astype(float)), rtol=1e-10)


# --- random levels -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 50, 1000])
def test_levels_are_drawn_with_the_probabilities_that_they_are_weighted_by(steps):
    sampler = level_sampler(steps)
    share = 1 / np.arange(1, steps)
    np.testing.assert_allclose(sampler.probability, share / share.sum(), rtol=2e-3)
    assert sampler.probability.sum() == pytest.approx(1.0, abs=1e-12)
    quantiles = (np.arange(2**20) + 0.5) / 2**20
    s = np.asarray(sampler.sample(jnp.asarray(quantiles, jnp.float32)))
    # A level's share of an even grid is right up to a point at either end.
    frequency = np.bincount(s, minlength=steps + 1)[2:] / 2**20
    np.testing.assert_allclose(frequency, sampler.probability, atol=2.1 / 2**20)
    np.testing.assert_array_equal(sampler.sample(jnp.array([0.0, 1.0])), [2, steps])


def test_groups_of_levels_hold_each_from_2_on_once():
    for steps in (2, 3, 4, 31, 1000, 4000):
        levels = [s for first, last in level_groups(steps) for s in range(first, last + 1)]
        assert levels == [*range(2, steps + 1)]
    assert level_groups(1000) == ((2, 3), (4, 10), (11, 32), (33, 100), (101, 316), (317, 1000))


# --- the last term -------------------------------------------------------------------------------


def test_density_is_scipys():
    rng = np.random.default_rng(0)
    x, mean = jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32)
    for variance in (VARIANCE, VARIANCE[:1]):
        expected = -stats.norm.logpdf(np.float64(x), np.float64(mean), np.sqrt(variance)).sum(
            axis=-1
        )
        np.testing.assert_allclose(gaussian_nats(x, mean, variance), expected, rtol=1e-5)


PIXEL_MEAN, PIXEL_STD = 0.45, 0.22
MEANS = [-2.1, 0.013, 2.5]  # black is -2.05 and white 2.5


def of_all_pixels(mean, variance):
    """Nats of each of the 256 values, each a patch of one pixel."""
    level = jnp.arange(256).reshape(256, 1, 1)
    x = (level / 255 - PIXEL_MEAN) / PIXEL_STD
    half_bin = np.array([1 / (510 * PIXEL_STD)])
    means = jnp.full(x.shape, mean)
    return np.float64(discretized_nats(x, level, half_bin, means, np.array([variance])))[:, 0]


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("variance", [1e-3, 0.2, 30.0])
def test_probabilities_are_differences_of_cdfs_far_into_both_tails(mean, variance):
    edges = ((np.arange(255) + 0.5) / 255 - PIXEL_MEAN) / PIXEL_STD
    edges = np.concatenate([[-np.inf], edges, [np.inf]])
    z = (edges - np.float64(np.float32(mean))) / np.sqrt(variance)
    # Each bin on the side of the mean where its cdf is small.
    lower, upper = z[:-1], z[1:]
    left = upper + lower <= 0
    low, high = np.where(left, lower, -upper), np.where(left, upper, -lower)
    log_high = special.log_ndtr(high)
    expected = log_high + np.log(-np.expm1(special.log_ndtr(low) - log_high))
    # float32 knows where a pixel is to 1e-7 of 2, of a bin of 0.018 with a slope of z.
    found = of_all_pixels(mean, variance)
    np.testing.assert_allclose(found, -expected, rtol=1e-4, atol=1e-3)
    assert np.exp(-found).sum() == pytest.approx(1.0, abs=1e-4)
    assert np.exp(-of_all_pixels(mean, 1e-8)).sum() == pytest.approx(1.0, abs=1e-4)
