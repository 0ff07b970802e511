"""Mixing and erasing as timm does them: its algorithms in plain NumPy, Beta's moments, areas."""

import dataclasses
import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from darl_jax.methods.transfer.mixing import MixingConfig, augment, erase, mix, soft_labels

BOTH = MixingConfig(mixup=0.8, cutmix=1.0)
BATCH, HEIGHT, WIDTH, CLASSES = 6, 24, 17, 6
DRAWS = 3000

jitted_mix = jax.jit(mix, static_argnums=3)
jitted_erase = jax.jit(erase, static_argnums=2)
jitted_augment = jax.jit(augment, static_argnums=3)


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def marked() -> tuple[jax.Array, jax.Array]:
    """Image i is i + 1 everywhere, and its label is i."""
    images = jnp.broadcast_to(
        jnp.arange(1.0, BATCH + 1)[:, None, None, None], (BATCH, HEIGHT, WIDTH, 3)
    )
    return images, jnp.eye(BATCH, CLASSES)


@functools.cache
def many(config: MixingConfig, count: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """For many batches: which pixels of the first image are its own, and its label's weight."""
    images, targets = marked()

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed, labels = mix(key, images[..., :1], targets, config)
        return (mixed[0, ..., 0] - BATCH) / (1.0 - BATCH), labels[0, 0]

    own, weight = jax.jit(jax.vmap(one))(keys(count))
    return np.asarray(own, np.float64), np.asarray(weight, np.float64)


def kinds(own: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """'none', 'mixup' or 'cutmix' for each of many batches."""
    uniform = np.ptp(own, axis=(1, 2)) < 1e-6
    return np.where(weight == 1.0, "none", np.where(uniform, "mixup", "cutmix"))


def assert_mean(values: np.ndarray, expected: float) -> None:
    """Within five standard errors."""
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - expected) < 5 * error, (values.mean(), expected, error)


# --- labels --------------------------------------------------------------------------------------


def test_soft_labels_are_one_minus_s_and_a_share_of_s_for_every_class() -> None:
    result = soft_labels(jnp.array([2, 0]), 4, 0.1)
    np.testing.assert_allclose(
        result, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )
    hard = soft_labels(jnp.array([1, 3]), 4, 0.0)
    np.testing.assert_array_equal(hard, np.eye(4)[[1, 3]])


# --- mixup and CutMix ----------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MixingConfig(), MixingConfig(mixup=0.8, probability=0.0)])
def test_nothing_is_computed_where_all_is_off(config: MixingConfig) -> None:
    images, targets = marked()
    key = jax.random.key(0)
    assert not jax.make_jaxpr(lambda x, y: mix(key, x, y, config))(images, targets).eqns
    assert not jax.make_jaxpr(lambda x: erase(key, x, config))(images).eqns
    same_images, same_targets = mix(key, images, targets, config)
    assert same_images is images and same_targets is targets
    assert erase(key, images, config) is images


def boxes(changed: np.ndarray) -> np.ndarray:
    """(top, left, height, width) of each image that has a box; it must be a whole one."""
    changed = changed[changed.any(axis=(1, 2))]
    rows, columns = changed.any(axis=2), changed.any(axis=1)
    np.testing.assert_array_equal(changed, rows[:, :, None] & columns[:, None, :])
    return np.stack(
        [rows.argmax(axis=1), columns.argmax(axis=1), rows.sum(axis=1), columns.sum(axis=1)], axis=1
    )


def assert_coverage(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Each pixel is in a box as often as in theirs, within six standard errors."""
    share = theirs.mean(axis=0)
    error = np.sqrt(share * (1 - share) * (1 / len(ours) + 1 / len(theirs)))
    assert (np.abs(ours.mean(axis=0) - share) < 6 * error + 1e-4).all()


def test_share_of_mixup_is_drawn_from_beta() -> None:
    alpha = 0.4  # below 0.3 some shares are 1 in float32
    own, weight = many(MixingConfig(mixup=alpha))
    # What is seen and what the label says are one number, and one for all pixels.
    np.testing.assert_allclose(own.min(axis=(1, 2)), weight, atol=1e-5)
    np.testing.assert_allclose(own.max(axis=(1, 2)), weight, atol=1e-5)
    assert_mean(weight, 0.5)
    assert_mean((weight - 0.5) ** 2, stats.beta(alpha, alpha).var())


def timm_cutmix(rng: np.random.Generator, alpha: float) -> np.ndarray:
    """Pixels of a box as timm draws it (`rand_bbox`, 1.0.31)."""
    ratio = math.sqrt(1 - rng.beta(alpha, alpha))
    cut_h, cut_w = int(HEIGHT * ratio), int(WIDTH * ratio)
    cy, cx = rng.integers(HEIGHT), rng.integers(WIDTH)
    box = np.zeros((HEIGHT, WIDTH), bool)
    box[max(cy - cut_h // 2, 0) : cy + (cut_h + 1) // 2][:, max(cx - cut_w // 2, 0) :][
        :, : min(cx + (cut_w + 1) // 2, WIDTH) - max(cx - cut_w // 2, 0)
    ] = True
    return box


@functools.cache
def many_of_timm(alpha: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([timm_cutmix(rng, alpha) for _ in range(10_000)])


def test_boxes_of_cutmix_are_distributed_as_those_of_timm_and_weight_labels_by_area() -> None:
    own, weight = many(MixingConfig(cutmix=1.0))
    # Every pixel is of one image or the other, and the weight is the fraction of its own ones.
    assert set(np.unique(own)) == {0.0, 1.0}
    np.testing.assert_allclose(weight, own.mean(axis=(1, 2)), atol=1e-6)
    boxes(own == 0)  # each is a whole one
    theirs = many_of_timm(1.0)
    assert_coverage(own == 0, theirs)
    area = theirs.mean(axis=(1, 2))
    assert_mean((weight == 1.0).astype(float), (area == 0).mean())
    assert_mean((1 - weight - area.mean()) ** 2, area.var())


def test_batch_is_mixed_by_one_way_with_the_configured_probabilities() -> None:
    own, weight = many(dataclasses.replace(BOTH, probability=0.7, switch_probability=0.25))
    kind = kinds(own, weight)
    empty = 1 - many_of_timm(1.0).any(axis=(1, 2)).mean()
    assert_mean((kind == "mixup").astype(float), 0.7 * 0.75)
    assert_mean((kind == "cutmix").astype(float), 0.7 * 0.25 * (1 - empty))


def test_whole_batch_shares_one_share_and_one_box() -> None:
    images, targets = marked()
    number = np.arange(1.0, BATCH + 1)
    for key in keys(20):
        mixed, labels = jitted_mix(key, images, targets, BOTH)
        own = (np.asarray(mixed[..., 0]) - number[::-1, None, None]) / (number - number[::-1])[
            :, None, None
        ]
        np.testing.assert_allclose(own, np.broadcast_to(own[:1], own.shape), atol=1e-5)
        share = float(labels[0, 0])
        expected = share * np.eye(BATCH) + (1 - share) * np.eye(BATCH)[::-1]
        np.testing.assert_allclose(labels, expected, atol=1e-6)


# --- erasing -------------------------------------------------------------------------------------

ERASING = MixingConfig(erasing_probability=0.6)


def timm_erasing(rng: random.Random, config: MixingConfig) -> np.ndarray:
    """Pixels of a box as timm's RandomErasing draws it."""
    box = np.zeros((HEIGHT, WIDTH), bool)
    if rng.random() > config.erasing_probability:
        return box
    low, high = (math.log(ratio) for ratio in config.erasing_aspect)
    for _ in range(10):
        area = rng.uniform(*config.erasing_area) * HEIGHT * WIDTH
        aspect = math.exp(rng.uniform(low, high))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < HEIGHT and width < WIDTH:
            top, left = rng.randint(0, HEIGHT - height), rng.randint(0, WIDTH - width)
            box[top : top + height, left : left + width] = True
            break
    return box


@functools.cache
def erased_images(config: MixingConfig) -> np.ndarray:
    """Many images that were 100 everywhere."""
    images = jnp.full((DRAWS, HEIGHT, WIDTH, 2), 100.0)
    return np.asarray(jitted_erase(jax.random.key(3), images, config))


def erased(config: MixingConfig) -> np.ndarray:
    """Which pixels of the images are no longer what they were."""
    changed = erased_images(config) != 100.0
    np.testing.assert_array_equal(changed[..., 0], changed[..., 1])
    return changed[..., 0]


@pytest.mark.parametrize(
    "config",
    [ERASING, MixingConfig(erasing_probability=1.0, erasing_area=(0.5, 0.95))],
    ids=["recipe", "boxes that often do not fit"],
)
def test_boxes_that_are_erased_are_distributed_as_those_of_timm(config: MixingConfig) -> None:
    changed, rng = erased(config), random.Random(0)
    theirs = np.stack([timm_erasing(rng, config) for _ in range(10_000)])
    assert_mean(changed.any(axis=(1, 2)).astype(float), theirs.any(axis=(1, 2)).mean())
    assert_coverage(changed, theirs)
    for side in (2, 3):
        of_theirs = boxes(theirs)[:, side]
        assert_mean(boxes(changed)[:, side], of_theirs.mean())
        assert_mean((boxes(changed)[:, side] - of_theirs.mean()) ** 2, of_theirs.var())


def test_images_are_erased_independently_with_standard_gaussian_noise() -> None:
    changed = erased(ERASING)
    happens = changed.any(axis=(1, 2)).astype(float)
    assert abs(np.corrcoef(happens[:-1], happens[1:])[0, 1]) < 5 / math.sqrt(DRAWS)
    top = boxes(changed)[:, 0]
    assert abs(np.corrcoef(top[:-1], top[1:])[0, 1]) < 5 / math.sqrt(len(top))
    noise = erased_images(ERASING)[:200][changed[:200]]
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_augment_erases_before_it_mixes() -> None:
    images, targets = marked()
    config = dataclasses.replace(BOTH, erasing_probability=1.0)
    for key in keys(5):
        one, two = jax.random.split(key)
        mixed, labels = jitted_mix(two, jitted_erase(one, images, config), targets, config)
        result, result_labels = jitted_augment(key, images, targets, config)
        # Fused in one program or made by two: the last bits of float32.
        np.testing.assert_allclose(result, mixed, atol=1e-5)
        np.testing.assert_allclose(result_labels, labels, atol=1e-6)


# --- devices -------------------------------------------------------------------------------------


def digest(devices: int) -> list:
    """A batch split over devices; tests/training/test_sharding.py compares their numbers."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("data"))
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.normal(size=(8, 12, 10, 3)).astype(np.float32), split)
    targets = jax.device_put(np.eye(8, dtype=np.float32), split)
    config = dataclasses.replace(BOTH, erasing_probability=0.5)
    step = jax.jit(
        lambda key, x, y: augment(key, x, y, config), out_shardings=(split, split)
    )  # fmt: skip
    results = [step(key, images, targets) for key in keys(6)]
    return [[np.asarray(part, np.float64).tolist() for part in pair] for pair in results]
