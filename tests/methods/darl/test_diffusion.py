"""The diffusion objective: what the decoder is given, and what is made of its answer."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from darl_jax.methods.darl.diffusion import Diffusion, DiffusionConfig, corrupt, denoise
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.schedules import ScheduleConfig
from tests.methods_on_images import RGB, RGB_MEAN, RGB_STD, method, rgb_batch

KEY = jax.random.key(0)
EXAMPLES, PATCHES, PIXELS, DRAWS = 4, 16, 12, 32
BATCH = rgb_batch(EXAMPLES)

Decode = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class StubModel(DARL, pytree=False):
    """Encodes patches as themselves, decodes by a function, and remembers what it was given."""

    def __init__(self, decode: Decode):
        self.decode = decode
        self.encoded = 0

    def draw_order(self, key: jax.Array, batch: int, grid: tuple[int, int]) -> np.ndarray:
        del key, batch
        return np.arange(grid[0] * grid[1])

    def encode(self, patches: jax.Array, grid: tuple[int, int], order: np.ndarray) -> jax.Array:
        assert len(order) == grid[0] * grid[1] == patches.shape[1]
        self.encoded += 1
        return patches

    @property
    def patch_decoder(self) -> Any:
        def decode(z: jax.Array, x_s: jax.Array, gamma: jax.Array) -> jax.Array:
            self.given = tuple(np.asarray(x, np.float64) for x in (z, x_s, gamma))
            return self.decode(z, x_s, gamma)

        decode.denoiser = lambda z: functools.partial(decode, z)
        return decode


def zero(z: jax.Array, x_s: jax.Array, gamma: jax.Array) -> jax.Array:
    return jnp.zeros_like(x_s)


def noise(z: jax.Array, x_s: jax.Array, gamma: jax.Array) -> jax.Array:
    return (x_s - jnp.sqrt(gamma) * z) / jnp.sqrt(1 - gamma)


def make_objective(**config: Any) -> Diffusion:
    return method(DiffusionConfig(**config), data=RGB)


def test_denoise_inverts_corrupt() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    eps = jnp.asarray(rng.normal(size=(4, 2, 3, 5)), jnp.float32)
    gamma = jnp.asarray(rng.uniform(0.01, 1, size=(4, 2, 3, 1)), jnp.float32)
    x_s = corrupt(x, eps, gamma)
    exact = np.sqrt(np.asarray(gamma, np.float64)) * np.asarray(x)
    exact += np.sqrt(1 - np.asarray(gamma, np.float64)) * np.asarray(eps)
    np.testing.assert_allclose(x_s, exact, atol=1e-6)
    # Rounding, 2e-7, is divided by sqrt(0.01).
    np.testing.assert_allclose(denoise(x_s, eps, gamma), np.broadcast_to(x, eps.shape), atol=5e-6)
    # x^0 cannot be recovered at gamma 0; the clamp keeps it finite.
    assert jnp.isfinite(denoise(eps, eps + 0.1, 0 * gamma)).all()


def test_a_decoder_that_returns_zero_has_the_mean_square_of_the_pixels_as_loss() -> None:
    pixels = (np.asarray(BATCH["image"], np.float64) / 255 - np.array(RGB_MEAN)) / np.array(RGB_STD)
    loss, _ = make_objective(draws=DRAWS).loss(StubModel(zero), BATCH, KEY)
    np.testing.assert_allclose(loss, (pixels**2).mean(), rtol=1e-5)


def test_every_patch_of_every_draw_has_its_own_gamma_and_noise() -> None:
    model = StubModel(zero)
    make_objective(draws=DRAWS, schedule=ScheduleConfig(a=0.5, b=1.0)).loss(model, BATCH, KEY)
    z, x_s, gamma = model.given
    assert model.encoded == 1, "the backbone is paid once for all draws"
    assert gamma.shape == (DRAWS, EXAMPLES, PATCHES, 1)
    assert x_s.shape == (DRAWS, EXAMPLES, PATCHES, PIXELS)
    # 2048 draws of 24 bits, of which some share their leading ones near 0.
    assert np.unique(gamma).size > 0.99 * gamma.size
    assert stats.kstest(gamma.ravel(), stats.beta(0.5, 1.0).cdf).pvalue > 1e-3
    eps = (x_s - np.sqrt(gamma) * z) / np.sqrt(1 - gamma)
    # A quarter of the values: SciPy's exact distribution is slow for more.
    assert stats.kstest(eps.ravel()[::4], stats.norm.cdf).pvalue > 1e-3
    flat = eps.reshape(DRAWS, -1)
    correlation = np.corrcoef(flat) - np.eye(DRAWS)
    assert np.abs(correlation).max() < 6 / np.sqrt(flat.shape[1])
    across = np.corrcoef(gamma.ravel(), np.abs(eps).mean(-1).ravel())[0, 1]
    assert abs(across) < 5 / np.sqrt(gamma.size)


@pytest.mark.parametrize("prediction", ["x0", "epsilon"])
def test_the_loss_is_the_mean_over_draws_examples_patches_and_pixels(prediction: str) -> None:
    def decode(z: jax.Array, x_s: jax.Array, gamma: jax.Array) -> jax.Array:
        return 0.3 * z + 0.5 * x_s - gamma

    model = StubModel(decode)
    objective = make_objective(prediction=prediction, draws=DRAWS, schedule=ScheduleConfig(a=1.0))
    loss, metrics = objective.loss(model, BATCH, KEY)
    z, x_s, gamma = model.given
    eps = (x_s - np.sqrt(gamma) * z) / np.sqrt(1 - gamma)
    error = (0.3 * z + 0.5 * x_s - gamma - (z if prediction == "x0" else eps)) ** 2
    assert error.shape[0] == DRAWS
    np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)
    assert float(metrics["loss"].count) == DRAWS * EXAMPLES * PATCHES
    # The tenth part of the range that gamma fell in: for Beta(1, 1) quantiles are gamma itself.
    decile = np.minimum(np.floor(gamma[..., 0] * 10), 9)
    for i in range(10):
        np.testing.assert_allclose(
            metrics[f"loss_by_gamma/decile_{i}"].compute(),
            error.mean(-1)[decile == i].mean(),
            rtol=1e-4,
        )


@pytest.mark.parametrize("schedule", ["beta", "cosine"])
def test_deciles_hold_a_tenth_of_the_draws_each_and_average_to_the_loss(schedule: str) -> None:
    objective = make_objective(schedule=ScheduleConfig(schedule), draws=DRAWS)
    loss, metrics = objective.loss(StubModel(lambda z, x_s, gamma: x_s), BATCH, KEY)
    deciles = [metrics[f"loss_by_gamma/decile_{i}"] for i in range(10)]
    counts = np.array([float(d.count) for d in deciles])
    draws = DRAWS * EXAMPLES * PATCHES
    assert counts.sum() == draws
    # Five standard deviations of a binomial share.
    np.testing.assert_allclose(counts / draws, 0.1, atol=5 * np.sqrt(0.09 / draws))
    np.testing.assert_allclose(sum(float(d.total) for d in deciles) / draws, loss, rtol=1e-5)
    # Error of x_s as an answer falls with gamma: decile 0 has most noise.
    means = [float(d.compute()) for d in deciles]
    assert means[0] > means[9]


def test_examples_that_the_mask_leaves_out_count_nothing_not_even_as_nan() -> None:
    mask = jnp.array([True, False, True, False])
    broken = StubModel(
        lambda z, x_s, gamma: jnp.where(mask[:, None, None], jnp.zeros_like(x_s), jnp.nan)
    )
    objective = make_objective(draws=DRAWS)
    loss, metrics = objective.loss(broken, {**BATCH, "mask": mask}, KEY)
    z = broken.given[0]
    np.testing.assert_allclose(loss, (z[::2] ** 2).mean(), rtol=1e-5)
    assert float(metrics["loss"].count) == DRAWS * 2 * PATCHES
    assert sum(float(metrics[f"loss_by_gamma/decile_{i}"].count) for i in range(10)) == (
        DRAWS * 2 * PATCHES
    )
    assert all(jnp.isfinite(metric.total) for metric in metrics.values())


def test_noise_follows_from_the_key() -> None:
    models = [StubModel(zero) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        make_objective(draws=DRAWS).loss(model, BATCH, jax.random.key(seed))
    np.testing.assert_array_equal(models[0].given[1], models[1].given[1])
    assert not (models[0].given[1] == models[2].given[1]).any()


def test_a_model_of_x0_is_shown_noise_alone_and_one_of_epsilon_a_tenth_of_the_patch() -> None:
    model = StubModel(lambda z, x_s, gamma: 0.5 * jnp.broadcast_to(z, x_s.shape))
    prediction = make_objective().predict(model, BATCH, KEY)
    z, x_s, gamma = model.given
    assert (gamma == 0).all()
    assert abs(np.corrcoef(x_s.ravel(), z.ravel())[0, 1]) < 5 / np.sqrt(z.size)
    np.testing.assert_allclose(prediction.target, z, atol=1e-6)
    np.testing.assert_allclose(prediction.predicted, 0.5 * z, atol=1e-6)
    np.testing.assert_allclose(prediction.error, (0.25 * z**2).mean(-1), rtol=1e-5)

    model = StubModel(noise)
    prediction = make_objective(prediction="epsilon").predict(model, BATCH, KEY)
    np.testing.assert_allclose(model.given[2], 0.1, rtol=1e-6)
    np.testing.assert_allclose(prediction.predicted, prediction.target, atol=1e-5)
    assert prediction.error.max() < 1e-9
