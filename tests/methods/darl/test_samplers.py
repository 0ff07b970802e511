"""Samplers against closed forms: Gaussians and mixtures, whose best denoisers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods.darl.samplers import (
    SAMPLERS,
    SamplerConfig,
    Steps,
    circular_levels,
    ddim,
    ddpm,
    dpm_solver,
    linear_levels,
    make_steps,
    run_steps,
)

MEAN, STD = 0.7, 1.6
LEVELS = circular_levels(50)


def gaussian_denoiser(x, gamma):
    """E[x^0 | x^s] for x^0 ~ N(MEAN, STD^2)."""
    gain = jnp.sqrt(gamma) * STD**2 / (gamma * STD**2 + 1 - gamma)
    return MEAN + gain * (x - jnp.sqrt(gamma) * MEAN)


def drawn(steps: Steps, denoise, *, number=20_000, pixels=1, bounds=None, seed=0) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), number)
    noisy = bool(np.any(steps.of_noise))
    table = Steps(*(jnp.asarray(column, jnp.float32) for column in steps))
    count = len(steps.gamma)

    @jax.jit
    def run(keys):
        return run_steps(denoise, table, count, keys, pixels, bounds, noisy=noisy)

    return np.asarray(run(keys), np.float64)


def exact_moments(steps: Steps) -> tuple[float, float]:
    """Mean and standard deviation of what a sampler makes of a Gaussian, in float64.

    The denoiser is affine, so mean and covariance of (x, the x^0 before) follow from the table.
    """
    mean, covariance = np.zeros(2), np.diag([1.0, 0.0])
    for gamma, of_x, of_x0, of_previous, of_noise in zip(*steps, strict=True):
        gain = np.sqrt(gamma) * STD**2 / (gamma * STD**2 + 1 - gamma)
        offset = MEAN - gain * np.sqrt(gamma) * MEAN
        matrix = np.array([[of_x + of_x0 * gain, of_previous], [gain, 0.0]])
        mean = matrix @ mean + np.array([of_x0 * offset, offset])
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += float(of_noise[0]) ** 2
    return float(mean[0]), float(np.sqrt(covariance[0, 0]))


def test_ddim_with_eta_1_is_ddpm_on_the_same_levels():
    for a, b in zip(ddim(linear_levels(40), 1.0), ddpm(40), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "steps", [ddim(LEVELS, 0.0), ddim(LEVELS, 0.5), ddpm(50), dpm_solver(LEVELS)]
)
def test_loop_computes_what_the_table_says(steps):
    mean, std = exact_moments(steps)
    got = drawn(steps, gaussian_denoiser)
    error = std / np.sqrt(len(got))
    assert abs(got.mean() - mean) < 4 * error
    assert abs(got.std() - std) < 4 * error / np.sqrt(2)


def test_a_gaussian_is_reached_at_first_order():
    """The error of the standard deviation halves when the steps double."""
    for eta in (0.0, 0.7):
        tables = [ddim(circular_levels(n), eta) for n in (100, 200, 400)]
        errors = [abs(exact_moments(table)[1] - STD) for table in tables]
        np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2.0, rtol=0.15)
        assert exact_moments(tables[0])[0] == pytest.approx(MEAN, abs=1e-9)


def test_a_gaussian_is_reached_at_second_order():
    """The error falls by four when the steps double, but for the last step from noise to patch."""
    errors = [abs(exact_moments(dpm_solver(circular_levels(n)))[1] - STD) for n in (10, 20, 40)]
    assert min(np.divide(errors[:-1], errors[1:])) > 3.0
    assert errors[1] < abs(exact_moments(ddim(circular_levels(20), 0.0))[1] - STD) / 4


def test_levels_go_from_the_clean_patch_to_noise_alone():
    for noise, signal in (linear_levels(7), circular_levels(7)):
        assert (noise[0], signal[0], noise[-1], signal[-1]) == (0.0, 1.0, 1.0, 0.0)
        assert (np.diff(noise) > 0).all()
        np.testing.assert_allclose(noise + signal, 1.0, rtol=1e-15)


def test_analytic_variance_of_a_gaussian_is_exact_in_any_number_of_steps():
    """The reverse of a Gaussian is Gaussian, and the denoiser's error is all that is left out."""
    for n in (2, 5, 30):
        s = np.arange(1, n + 1) / n
        error = 1 / (1 / STD**2 + (1 - s) / s)
        # The last step adds no noise (Appendix F): the error of its estimate is what is missing.
        steps = ddpm(n, error[:, None])
        mean, std = exact_moments(steps)
        assert mean == pytest.approx(MEAN, abs=1e-9)
        assert std**2 + error[0] == pytest.approx(STD**2, rel=1e-9)


def test_temperature_scales_the_noise_and_nothing_else():
    plain = make_steps(SamplerConfig(steps=9), 9)
    cooled = make_steps(SamplerConfig(steps=9, temperature=0.25), 9)
    np.testing.assert_allclose(cooled.of_noise, 0.25 * plain.of_noise)
    for a, b in zip(cooled[:-1], plain[:-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_estimates_are_kept_within_bounds():
    bounds = (np.full(1, -0.5, np.float32), np.full(1, 1.0, np.float32))
    got = drawn(ddpm(20), gaussian_denoiser, number=2000, bounds=bounds)
    assert got.min() >= -0.5
    assert got.max() <= 1.0
    assert np.mean(got == np.float32(1.0)) > 0.05  # the last step gives the clipped estimate itself


def test_a_longer_table_is_taken_as_far_as_its_count():
    short, keys = ddpm(3), jax.random.split(jax.random.key(0), 4)
    padded = Steps(*(np.pad(c, [(0, 5), *[(0, 0)] * (c.ndim - 1)]) for c in short))

    def run(table, count):
        table = Steps(*(jnp.asarray(column, jnp.float32) for column in table))
        return run_steps(gaussian_denoiser, table, count, keys, 1, None, noisy=True)

    np.testing.assert_array_equal(run(short, 3), run(padded, jnp.asarray(3)))


def test_a_patch_s_noise_is_its_own_key_s():
    keys = jax.random.split(jax.random.key(0), 6)
    table = Steps(*(jnp.asarray(column, jnp.float32) for column in ddpm(5)))

    @jax.jit
    def run(keys):
        return run_steps(gaussian_denoiser, table, 5, keys, 3, None, noisy=True)

    each = run(keys)
    np.testing.assert_allclose(run(keys[::-1]), each[::-1], rtol=1e-6)
    assert len(np.unique(np.asarray(each))) == 18


@pytest.mark.parametrize("name", SAMPLERS)
def test_very_few_steps_are_finite(name):
    for steps in (1, 2, 3, 4):
        table = make_steps(SamplerConfig(name, steps=steps), steps)
        assert all(np.isfinite(column).all() for column in table)
        assert (table.of_x[-1], table.of_x0[-1] + table.of_previous_x0[-1]) == (0.0, 1.0)
        assert not table.of_noise[-1].any()


def test_number_of_steps_falls_linearly_over_the_patches():
    assert SamplerConfig(steps=100, last_steps=10).counts(4) == [100, 70, 40, 10]
    assert SamplerConfig(steps=7).counts(3) == [7, 7, 7]
