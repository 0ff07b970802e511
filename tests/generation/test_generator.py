"""Images as a whole: what is given stays, an image is its number's, orders and settings count."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.generation.generator import Generator, generating_method, pixel_bounds
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.nn import orders
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.patches import patchify, standardize, unpatchify, unstandardize
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import graph_definition, parameters
from tests.random_modules import random_module
from tests.tiny_runs import tiny

GRID = (4, 4)
SAMPLER = SamplerConfig(steps=6)
GIVEN = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
DIFFUSION = {
    "objective": "diffusion",
    "model__patch_size": 2,
    "objective__patch_decoder__kind": "transformer",
    "objective__patch_decoder__layers": 2,
    "objective__patch_decoder__condition_on_gamma": True,
}
SQUARED = {"model__patch_size": 2}
MESH = make_mesh(MeshConfig(), jax.devices()[:1])


@functools.cache
def parts(**changes):
    """(graphdef, method, random parameters that make outputs of about unit size) of `tiny`."""
    method = tiny(**changes).method
    return graph_definition(method.init), method, parameters(random_module(method.init))


@functools.cache
def generator(changes, sampler, **options) -> Generator:
    """Compiled once for each number of images."""
    graphdef, method, _ = parts(**dict(changes))
    if "order" in options:
        options["order"] = np.array(options["order"])
    return Generator(graphdef, method, sampler=sampler, mesh=MESH, **options)


def make(changes, *, numbers=range(6), given=GIVEN, seed=1, sampler=SAMPLER, **options):
    with jax.set_mesh(MESH):
        images = generator(tuple(changes.items()), sampler, **options)(
            parts(**changes)[2], jax.random.key(seed), np.array(numbers), given
        )
        return np.asarray(images)


@pytest.fixture(scope="module")
def six() -> np.ndarray:
    return make(DIFFUSION, known=5)


def patches_of(images: np.ndarray) -> np.ndarray:
    return np.asarray(patchify(jnp.asarray(images), 2))


def test_patches_that_are_given_stay_and_the_others_do_not_show(six):
    assert (patches_of(six)[:, :5] == patches_of(GIVEN)[:, :5]).all()
    other = GIVEN.copy()
    other[:, 4:] = 0  # none of the given patches
    np.testing.assert_array_equal(make(DIFFUSION, given=other, known=5), six)


def test_an_image_is_the_same_in_a_batch_of_any_size(six):
    two = make(DIFFUSION, numbers=[4, 5], given=GIVEN[4:], known=5)
    assert np.abs(two.astype(int) - six[4:]).max() <= 1


def test_numbers_and_seeds_make_other_images(six):
    same_start = make(DIFFUSION, given=np.repeat(GIVEN[:1], 6, axis=0), known=5)
    assert len({image.tobytes() for image in same_start}) == 6
    assert (make(DIFFUSION, seed=2, known=5) != six).any()


def test_a_loop_without_cache_and_tables_makes_the_same_image(six):
    """Each patch from a full pass over the image so far, step by step, in plain Python."""
    with jax.set_mesh(MESH):
        graphdef, method, params = parts(**DIFFUSION)
        darl = nnx.merge(graphdef, params)
        mean, std = method.data.mean, method.data.std
        x = np.array(patchify(standardize(jnp.asarray(GIVEN[:2]), mean, std), 2))
        x[:, 5:] = 0.0
        encode = jax.jit(darl.encode)
        denoised = jax.jit(lambda z, x_s, gamma: method.denoiser(darl, z)(x_s, gamma))
        low, high = ((np.float32(v) - mean[0]) / std[0] for v in (0.0, 1.0))
        for place in range(5, 16):
            z = encode(jnp.asarray(x))[:, place : place + 1]
            keys = [
                jax.random.fold_in(jax.random.fold_in(jax.random.key(1), n), place)
                for n in range(2)
            ]

            def noise(number, keys=keys):
                return np.stack(
                    [jax.random.normal(jax.random.fold_in(k, number), (4,)) for k in keys]
                )

            patch = noise(0)
            for taken, s in enumerate(range(6, 0, -1), start=1):
                gamma, before = 1 - s / 6, 1 - (s - 1) / 6
                level = jnp.full((1, 2, 1, 1), gamma, jnp.float32)
                estimate = np.asarray(
                    denoised(z, jnp.asarray(patch[None, :, None], jnp.float32), level)
                )
                estimate = np.clip(estimate[0, :, 0], low, high)
                alpha = gamma / before
                mean_of_step = (
                    math.sqrt(before) * (1 - alpha) / (1 - gamma) * estimate
                    + math.sqrt(alpha) * (1 - before) / (1 - gamma) * patch
                )
                deviation = math.sqrt((1 - before) / (1 - gamma) * (1 - alpha))
                patch = mean_of_step + deviation * noise(taken)
            x[:, place] = patch
        plain = np.asarray(unstandardize(unpatchify(jnp.asarray(x), 2, GRID), mean, std))
    assert np.abs(plain.astype(int) - six[:2]).max() <= 1


def test_the_squared_error_gives_its_mean():
    images = make(SQUARED, sampler=None, known=7)
    np.testing.assert_array_equal(images, make(SQUARED, sampler=None, known=7, seed=5))
    with jax.set_mesh(MESH):
        graphdef, method, params = parts(**SQUARED)
        predicted = method.predict(
            nnx.merge(graphdef, params), {"image": jnp.asarray(images)}, jax.random.key(0)
        ).predicted
        mean, std = method.data.mean, method.data.std
        shown = np.asarray(unstandardize(unpatchify(predicted, 2, GRID), mean, std))
    # An image of means is predicted as it is, but for its rounding to 8 bits.
    assert np.abs(patches_of(shown)[:, 7:].astype(int) - patches_of(images)[:, 7:]).max() <= 2


def test_patches_are_made_in_the_model_s_order():
    spiral = orders.fixed_order(OrderConfig("spiral"), GRID)
    images = make(DIFFUSION | {"model__order__name": "spiral"}, known=9)
    kept = patches_of(images) == patches_of(GIVEN)
    assert kept[:, spiral[:9]].all()
    assert not kept[:, spiral[9:]].all()


def test_a_model_of_two_streams_makes_patches_in_any_order():
    changes = DIFFUSION | {"objective__two_stream": True, "model__order__name": "random"}
    order = np.random.default_rng(3).permutation(16)
    kept = patches_of(make(changes, known=6, order=tuple(order))) == patches_of(GIVEN)
    assert kept[:, order[:6]].all()
    assert not kept[:, order[6:]].all()


def test_later_patches_take_fewer_steps():
    sampler = SamplerConfig(steps=48, last_steps=6)
    assert sampler.counts(16)[15:] == [6]
    plain = make(DIFFUSION, known=15, sampler=SamplerConfig(steps=6))
    np.testing.assert_array_equal(make(DIFFUSION, known=15, sampler=sampler), plain)


def test_bounds_are_those_of_8_bit_pixels_by_channel():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    method = tiny(model__patch_size=2, data__channels=3, data__mean=mean, data__std=std).method
    low, high = pixel_bounds(method)
    corners = np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), 255)]).astype(np.uint8)
    expected = patchify(standardize(jnp.asarray(corners), mean, std), 2)[:, 0]
    np.testing.assert_allclose(np.stack([low, high]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (DIFFUSION, {"known": 16}, "16 patches are given, and the model's grid of 4 x 4 has 16"),
        (DIFFUSION, {"known": -1}, "-1 patches are given"),
        (DIFFUSION, {"sampler": None}, "config.objective.name='diffusion' needs a sampler"),
        (SQUARED, {}, "objective.name='mse' has no denoising patch decoder, whi"),
        (DIFFUSION, {"order": tuple(range(16))[::-1]}, "the order 'raster' alone; another one"),
    ],
)
def test_what_cannot_be_made_is_an_error(changes, options, message):
    with pytest.raises(ValueError, match=message):
        make(changes, **options)


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("mse", {"normalize_target": True}, r"objective\.normalize_target=True"),
        ("classification", {"num_classes": 10}, "='classification' makes no images; 'mse' and"),
    ],
)
def test_a_method_whose_models_make_no_images_is_refused(objective, changes, message):
    keys = {f"objective__{key}": value for key, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        generating_method(tiny(objective, **keys).method)
