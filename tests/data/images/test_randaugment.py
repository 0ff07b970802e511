"""RandAugment does what timm's `rand-m9-mstd0.5-inc1` does, as a function of the record alone."""

import dataclasses
import hashlib
import pathlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from darl_jax.data import order
from darl_jax.data.batches import rows_to_records
from darl_jax.data.images import decode as images
from darl_jax.data.images import randaugment
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.memory import MemorySplit
from darl_jax.data.images.randaugment import OPERATIONS, Operation, RandAugmentConfig
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import train_batches
from darl_jax.data.sources.digits import DigitsSource

GOLDEN = np.load(pathlib.Path(__file__).resolve().parents[2] / "golden" / "randaugment.npz")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
# timm's names, with what it appends where it has operations of other scales.
TIMM = """AutoContrast Equalize Invert Rotate PosterizeIncreasing SolarizeIncreasing SolarizeAdd
    ColorIncreasing ContrastIncreasing BrightnessIncreasing SharpnessIncreasing ShearX ShearY
    TranslateXRel TranslateYRel""".split()
RECIPE = RandAugmentConfig(magnitude=9.0)
DIGITS = ImagesConfig(
    source="digits", image_size=8, channels=1, mean=(0.5,), std=(0.5,), num_workers=0
)
COLORS = ImagesConfig(
    source="digits", image_size=12, mean=(0.5,) * 3, std=(0.5,) * 3, num_workers=0,
    randaugment=RECIPE,
)  # fmt: skip


def ours(name: str) -> str:
    return name.removesuffix("Increasing").removesuffix("Rel")


def draws(count: int, config: RandAugmentConfig = RECIPE, seed: int = 0) -> list[list[Operation]]:
    return randaugment.draw(config, seed, np.zeros(count, np.int64), np.arange(count))


@pytest.mark.parametrize("name", TIMM)
def test_operation_gives_the_pixels_of_timm_in_color_and_in_gray(name: str) -> None:
    for strength, expected in zip(GOLDEN["strengths"], GOLDEN[name], strict=True):
        operation = Operation(ours(name), float(strength))
        result = randaugment.apply(GOLDEN["image"], [operation], IMAGENET_MEAN)
        np.testing.assert_array_equal(result, expected, err_msg=f"{name} at {strength}")
    gray = np.asarray(Image.fromarray(GOLDEN["image"]).convert("L"))[..., None]
    for strength, expected in zip(GOLDEN["strengths"], GOLDEN[f"gray/{name}"], strict=True):
        operation = Operation(ours(name), float(strength))
        result = randaugment.apply(gray, [operation], IMAGENET_MEAN[:1])
        np.testing.assert_array_equal(result[..., 0], expected, err_msg=f"{name} at {strength}")


@pytest.mark.parametrize("pair", range(len(GOLDEN["mixed/names"])))
def test_operations_are_done_one_after_the_other(pair: int) -> None:
    names, strengths = GOLDEN["mixed/names"][pair], GOLDEN["mixed/strengths"][pair]
    operations = [Operation(ours(n), float(s)) for n, s in zip(names, strengths, strict=True)]
    result = randaugment.apply(GOLDEN["image"], operations, IMAGENET_MEAN)
    np.testing.assert_array_equal(result, GOLDEN["mixed/images"][pair])


def test_each_of_two_operations_is_done_with_probability_one_half() -> None:
    counts = Counter(len(operations) for operations in draws(20_000))
    # Binomial(2, 1/2), independently of each other.
    assert stats.chisquare([counts[i] for i in range(3)], [5000, 10_000, 5000]).pvalue > 1e-4


def test_operations_are_drawn_uniformly_and_with_replacement() -> None:
    always = dataclasses.replace(RECIPE, probability=1.0)
    pairs = Counter(tuple(operation.name for operation in pair) for pair in draws(45_000, always))
    # All 225 ordered pairs, those of twice the same among them.
    assert len(pairs) == 225
    assert stats.chisquare([*pairs.values()]).pvalue > 1e-4


def test_strength_is_gaussian_about_the_magnitude_up_to_ten_and_either_sign() -> None:
    strengths = np.array([o.strength for operations in draws(40_000) for o in operations])
    magnitude = 10 * np.abs(strengths)
    assert magnitude.max() == 10.0
    # A Gaussian that ends at its second standard deviation, where 2.3% gather.
    expected = stats.norm.sf(2)
    error = np.sqrt(expected / len(magnitude))
    assert abs((magnitude == 10).mean() - expected) < 5 * error
    below = magnitude[magnitude < 10]
    assert stats.kstest(below, stats.truncnorm(-18, 2, loc=9, scale=0.5).cdf).pvalue > 1e-4
    assert stats.binomtest(int((strengths < 0).sum()), len(strengths)).pvalue > 1e-4
    signs = np.sign(strengths)
    assert abs(np.corrcoef(signs, magnitude)[0, 1]) < 0.03


def test_what_is_done_depends_on_seed_epoch_and_record_alone() -> None:
    epoch, index = np.array([0, 0, 1, 7]), np.array([5, 6, 5, 5])
    always = dataclasses.replace(RECIPE, probability=1.0)
    together = randaugment.draw(always, 3, epoch, index)
    for i in range(4):
        assert randaugment.draw(always, 3, epoch[i : i + 1], index[i : i + 1]) == [together[i]]
    others = randaugment.draw(always, 4, epoch, index)
    strengths = {o.strength for operations in together + others for o in operations}
    assert len(strengths) == 16


def test_what_is_done_is_independent_of_the_crop_and_the_flip() -> None:
    zeros, index = np.zeros(20_000, np.int64), np.arange(20_000)
    crops = order.uniforms(0, zeros, index, images.UNIFORMS_PER_RECORD)
    always = dataclasses.replace(RECIPE, probability=1.0, num_ops=1)
    names = [*OPERATIONS]
    operations = [operation for (operation,) in draws(20_000, always)]
    number = [names.index(operation.name) for operation in operations]
    strength = [operation.strength for operation in operations]
    # 0.03 is more than four standard deviations of the correlation of independent numbers.
    for column in crops.T:
        assert abs(np.corrcoef(column, number)[0, 1]) < 0.03
        assert abs(np.corrcoef(column, np.abs(strength))[0, 1]) < 0.03
        assert abs(np.corrcoef(column, np.sign(strength))[0, 1]) < 0.03


# --- in the pipeline -----------------------------------------------------------------------------


def first(config: ImagesConfig, step: int = 0, **process: int) -> dict:
    split = ImageSplit(DigitsSource("train"), config)
    options = {"batch_size": 100, "seed": 2, "start_step": step, **process}
    held = MemorySplit(split) if config.in_memory else split
    with train_batches(held, config, **options) as batches:
        return next(batches)


@pytest.mark.parametrize("in_memory", [False, True])
def test_batch_is_the_plain_one_after_the_operations_of_each_record(in_memory) -> None:
    config = dataclasses.replace(COLORS, in_memory=in_memory)
    plain = first(dataclasses.replace(config, randaugment=RandAugmentConfig()), step=13)
    augmented = first(config, step=13)
    epoch, index = rows_to_records(np.arange(1300, 1400), 1297, 2)
    assert set(epoch) == {1}
    operations = randaugment.draw(RECIPE, 2, epoch, index)
    assert sum(map(bool, operations)) > 50
    for place in range(100):
        expected = randaugment.apply(plain["image"][place], operations[place], COLORS.mean)
        np.testing.assert_array_equal(augmented["image"][place], expected)
    for key in ("label", "index", "mask", "replaced"):
        np.testing.assert_array_equal(plain[key], augmented[key])


def test_without_it_batches_are_those_of_earlier_revisions() -> None:
    image = np.ascontiguousarray(first(DIGITS, step=5)["image"])
    assert hashlib.sha256(image).hexdigest().startswith("39b287bd4fc567d7")


# --- config --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("magnitude", 11.0), ("std", -0.5), ("num_ops", 0), ("probability", 1.5)],
)
def test_value_out_of_range_is_an_error_that_names_the_key(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"data\.randaugment\.{key} is"):
        RandAugmentConfig(**{key: value})
