"""Bits per dimension against scipy's Gaussians and a bound that is known, each image once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from darl_jax.evaluators.likelihood import (
    Likelihood,
    LikelihoodConfig,
    method_with_likelihood,
)
from darl_jax.evaluators.likelihood_result import Measured, draw_likelihood
from darl_jax.methods.darl.diffusion import Diffusion, DiffusionConfig
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.transfer.classification import ClassificationConfig
from darl_jax.nn.orders import OrderConfig
from darl_jax.training.state import parameters
from tests.evaluators.tiny import MEAN, STD, VIT, make_batches, random_images, tiny_model
from tests.methods_on_images import method
from tests.random_modules import random_module

KEY = jax.random.key(0)
CONFIG = LikelihoodConfig(steps=20, draws=4, levels=6)
DIFFUSION = method(DiffusionConfig(), VIT)
PIXELS = VIT.patch_size**2


def images(number, seed=0):
    """No pixel is 0, so that black rows are only those that fill batches up."""
    return np.maximum(random_images(number, seed), 1)


def evaluator(model, training, test, *, config=CONFIG, of=None, batch_size=5, padding=0):
    context = model.context(key=KEY)
    return Likelihood(
        config,
        dataclasses.replace(context, method=of or model.method),
        training=make_batches(training, batch_size, padding=padding),
        test=make_batches(test, batch_size, padding=padding),
    )


def measured(model, training, test, **kwargs):
    with jax.set_mesh(model.mesh):
        return evaluator(model, training, test, **kwargs).measure(model.params)


def standardized(pixels):
    """Patches as (image, row, column, pixel), in float64."""
    x = (pixels[..., 0] / 255 - MEAN[0]) / STD[0]
    side = VIT.patch_size
    x = x.reshape(len(x), 4, side, 4, side).transpose(0, 1, 3, 2, 4)
    return x.reshape(len(x), 4, 4, PIXELS)


# --- the squared error ---------------------------------------------------------------------------


def predictions(model, pixels):
    """What the squared error's model predicts, each image on its own."""
    merged = nnx.merge(model.graphdef, model.params)
    predict = jax.jit(lambda batch: model.method.predict(merged, batch, KEY).predicted)
    found = [predict({"image": image[None], "mask": np.ones(1, bool)}) for image in pixels]
    return np.float64(found).reshape(-1, 4, 4, PIXELS)


def bins(pixels):
    """Edges of each pixel's bin in standardized units."""
    half = 1 / (510 * STD[0])
    x = standardized(pixels)
    lower = np.where(x <= (0.5 / 255 - MEAN[0]) / STD[0], -np.inf, x - half)
    return lower, np.where(x >= (254.5 / 255 - MEAN[0]) / STD[0], np.inf, x + half)


@pytest.mark.parametrize(("discretized", "batch_size"), [(False, 12), (True, 5)])
def test_the_squared_error_has_the_likelihood_of_a_gaussian_fitted_on_training_images(
    tiny, discretized, batch_size
):
    training, test = random_images(7, seed=1), random_images(11, seed=2)
    test[0, :2] = [[[0]], [[255]]]  # the two open bins
    config = dataclasses.replace(CONFIG, discretized=discretized)
    found = measured(tiny, training, test, config=config, batch_size=batch_size, padding=9)
    std = np.sqrt(np.mean((predictions(tiny, training) - standardized(training)) ** 2))
    mean = predictions(tiny, test)
    if discretized:
        lower, upper = bins(test)
        bits = -np.log2(stats.norm.cdf(upper, mean, std) - stats.norm.cdf(lower, mean, std))
    else:
        bits = -stats.norm.logpdf(standardized(test), mean, std) / np.log(2)
        bits += np.log2(255 * STD[0])
    numbers = dict(found.numbers())
    assert set(numbers) == {"gaussian/bits_per_dim", "gaussian/standard_error"}
    assert numbers["gaussian/bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-5)
    of_image = bits.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.by_image["gaussian"], of_image[None], rtol=1e-5)
    np.testing.assert_allclose(found.by_patch["gaussian"], bits.mean(axis=(0, 3))[None], rtol=1e-5)
    assert numbers["gaussian/standard_error"] == pytest.approx(
        of_image.std(ddof=1) / np.sqrt(11), rel=1e-4
    )


# --- diffusion -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Blind(Diffusion):
    """Estimates every pixel as the same value, whatever it sees."""

    estimate: float = 0.0

    def denoiser(self, model, z):
        del model, z
        return lambda x_s, gamma: jnp.full_like(x_s, self.estimate) + 0.0 * gamma


def test_the_bound_of_a_denoiser_that_sees_nothing_is_its_known_sum():
    steps = 10
    config = LikelihoodConfig(
        steps=steps, draws=200, levels=10, discretized=False, per_dimension=False
    )
    model = tiny_model(denoising=True)
    training, test = images(4, seed=1), images(6, seed=2)
    test[:, :2, :2] //= 8  # one position in the image unlike the others
    blind = Blind(**vars(DIFFUSION), estimate=0.4)
    found = measured(model, training, test, config=config, of=blind)
    m = np.mean((standardized(training) - 0.4) ** 2)
    np.testing.assert_allclose(found.error, m, rtol=1e-5)

    error = ((standardized(test) - 0.4) ** 2)[..., None]
    s = np.arange(2, steps + 1)
    gain = steps / (s * (s - 1))  # of_x0^2 / sigma^2
    nats = {
        "analytic": 0.5 * (np.log1p(gain * m) + (1 + gain * error) / (1 + gain * m) - 1),
        "posterior": 0.5 * gain * error,
    }
    units = np.log2(255 * STD[0])
    numbers = dict(found.numbers())
    for name, last in (("analytic", m), ("posterior", 1 / steps)):
        kl = nats[name].mean(axis=3) / np.log(2)  # (image, row, column, s)
        density = 0.5 * (np.log(2 * np.pi * last) + error[..., 0] / last) / np.log(2) + units
        groups = [kl[..., :2].sum(axis=-1), kl[..., 2:].sum(axis=-1)]
        shares = np.stack([density.mean(axis=-1), *groups]).mean(axis=1)
        # Levels alone are random: by patch, 2 x 200 stratified draws know the sum to a percent.
        np.testing.assert_allclose(found.by_patch[name], shares, rtol=0.05)
        of_share = shares.mean(axis=(1, 2))
        assert numbers[f"{name}/reconstruction"] == pytest.approx(of_share[0], rel=1e-5)
        off = numbers[f"{name}/bits_per_dim"] - of_share.sum()
        assert abs(off) < 4 * numbers[f"{name}/mc_error"]
        assert numbers[f"{name}/mc_error"] < 0.01 * of_share.sum()


def test_estimates_are_clipped_to_what_pixels_can_be():
    model = tiny_model(denoising=True)
    black = np.zeros((3, 8, 8, 1), np.uint8)
    found = measured(model, black, black, of=Blind(**vars(DIFFUSION), estimate=-50.0))
    # Black is the lowest value, so that the clipped estimate is exact.
    assert np.all(found.error < 1e-10)


@dataclasses.dataclass(frozen=True)
class NanOnBlack(Diffusion):
    """Gives NaN for black images, as a model may for what it never saw."""

    def patches(self, batch):
        black = jnp.all(batch["image"] == 0, axis=(1, 2, 3))
        return jnp.where(black[:, None, None], jnp.nan, super().patches(batch))


@pytest.mark.slow
def test_the_answer_does_not_depend_on_the_size_of_the_batches_or_on_what_fills_them():
    model = tiny_model(denoising=True)
    vit = dataclasses.replace(VIT, positions="sincos2d", order=OrderConfig("random"))
    darl = random_module(method(DiffusionConfig(two_stream=True), vit).init)
    model = dataclasses.replace(model, graphdef=nnx.split(darl)[0], params=parameters(darl))
    nan_on_black = NanOnBlack(**vars(DIFFUSION))
    training, test = images(7, seed=1), images(11, seed=2)
    one, other = (
        measured(model, training, test, of=nan_on_black, batch_size=size) for size in (1, 8)
    )
    np.testing.assert_array_equal(one.records, np.arange(11))
    np.testing.assert_array_equal(other.records, np.arange(11))
    # float32 sums of another order.
    np.testing.assert_allclose(other.error, one.error, rtol=2e-5)
    for name in ("analytic", "posterior"):
        np.testing.assert_allclose(other.by_image[name], one.by_image[name], rtol=2e-5)
        np.testing.assert_allclose(other.by_patch[name], one.by_patch[name], rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def with_many_keys():
    """Twelve times the same image, measured with 40 keys."""
    model = tiny_model(denoising=True)
    same = np.repeat(images(1), 12, axis=0)
    with jax.set_mesh(model.mesh):
        ours, found = evaluator(model, images(3, seed=1), same, batch_size=12), []
        for ours._key in jax.random.split(KEY, 40):  # compiled once
            found.append(ours.measure(model.params))
        return found


@pytest.mark.parametrize("name", ["analytic", "posterior"])
def test_shares_add_up_and_each_estimate_has_noise_of_its_own(with_many_keys, name):
    found = with_many_keys[0]
    numbers = dict(found.numbers())
    shares = ("reconstruction", "by_s/2-3", "by_s/4-10", "by_s/11-20")
    assert found.shares == shares
    total = sum(numbers[f"{name}/{share}"] for share in shares)
    assert numbers[f"{name}/bits_per_dim"] == pytest.approx(total, rel=1e-12)
    assert total == pytest.approx(found.by_image[name].mean(), rel=1e-6)
    assert len(np.unique(found.by_image[name])) == 24


def test_the_monte_carlo_error_is_the_spread_between_keys(with_many_keys):
    """Of `posterior`, which nothing is fitted for."""
    runs = [dict(found.numbers()) for found in with_many_keys]
    totals = [each["posterior/bits_per_dim"] for each in runs]
    claimed = np.sqrt(np.mean([each["posterior/mc_error"] ** 2 for each in runs]))
    # The standard deviation of 40 has a relative error of 0.11.
    assert claimed == pytest.approx(np.std(totals, ddof=1), rel=0.4)


def digest(batch_size):
    """Numbers that tests/training/test_sharding.py compares over numbers of devices."""
    training, test = images(7, seed=1), images(11, seed=2)
    model = tiny_model(denoising=True, depth=1)
    return dict(measured(model, training, test, batch_size=batch_size).numbers())


def test_no_image_is_an_error():
    model = tiny_model(denoising=True)
    with pytest.raises(ValueError, match="training split holds no image"):
        measured(model, images(0), images(2))
    with pytest.raises(ValueError, match="validation split holds no image"):
        measured(model, images(2), images(0))


# --- the picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("gaussian",), ("analytic", "posterior")])
def test_any_answer_can_be_drawn(names):
    shares = ("reconstruction", "by_s/2-3", "by_s/4-10")[: 3 if len(names) > 1 else 1]
    found = Measured(
        shares,
        {name: np.ones((len(shares), 3, 4)) for name in names},
        {name: np.ones((1, 5)) for name in names},
        np.arange(5),
        np.arange(1),
        np.ones((1, 1)),
    )
    picture = draw_likelihood(found, 7)
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 420


# --- config --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (MSEConfig(normalize_target=True), r"objective\.normalize_target=True has no likelihood"),
        (ClassificationConfig(num_classes=3), r"objective\.name='classification' has no likelih"),
    ],
)
def test_a_method_without_a_likelihood_names_its_key(objective, message):
    with pytest.raises(ValueError, match=message):
        method_with_likelihood(method(objective))
