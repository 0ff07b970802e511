"""A split in memory holds every record's pixels, and makes the batches of the per-record path."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from darl_jax.data.base import some_records
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.memory import MemorySplit
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import eval_batches, train_batches
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.data.sources.folder import FolderSource
from darl_jax.data.sources.tfds import TfdsSource

DIGITS = ImagesConfig(source="digits", image_size=8, channels=1, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("image_size", "resizer", "mean"), [(32, "simd", 0.01), (20, "pillow", 0.001)]
)
def test_batches_equal_those_that_are_made_record_by_record(tfds_dir, image_size, resizer, mean):
    config = ImagesConfig(image_size=image_size, num_workers=0, resizer=resizer)
    source = ImageSplit(TfdsSource("cifar10", "train[:300]", tfds_dir), config)
    held = MemorySplit(source)
    options = {"batch_size": 200, "seed": 3, "start_step": 2}
    pairs = []
    with (
        train_batches(source, config, **options) as one,
        train_batches(held, config, **options) as other,
    ):
        pairs += [(next(one), next(other)) for _ in range(2)]
    with (
        eval_batches(source, config, batch_size=160) as one,
        eval_batches(held, config, batch_size=160) as other,
    ):
        pairs += list(zip(one, other, strict=True))
    assert len(pairs) == 4
    for by_record, in_memory in pairs:
        for key in ("label", "index", "mask", "replaced"):
            np.testing.assert_array_equal(by_record[key], in_memory[key])
            assert by_record[key].dtype == in_memory[key].dtype
        difference = by_record["image"].astype(int) - in_memory["image"]
        assert np.abs(difference).max() <= 2
        assert np.abs(difference).mean() < mean


def test_images_of_different_sizes_are_an_error_that_names_the_key(tmp_path):
    for i, size in enumerate(((8, 8), (8, 8), (9, 8))):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"data\.in_memory=True.*8 x 9") as caught:
        MemorySplit(ImageSplit(FolderSource(str(tmp_path), "train"), ImagesConfig()))
    assert "data.in_memory=False" in str(caught.value)


def test_one_channel_and_no_augmentation_give_the_stored_digits():
    whole = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "eval_crop": 1.0}
    config = dataclasses.replace(DIGITS, flip=False, **whole)
    held = MemorySplit(ImageSplit(DigitsSource("train"), config))
    with train_batches(held, config, batch_size=64, seed=0, start_step=0) as batches:
        batch = next(batches)
    stored = held.images[batch["index"]].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(batch["image"], stored)
    mirrored = dataclasses.replace(config, flip=True)
    held = MemorySplit(ImageSplit(DigitsSource("train"), mirrored))
    with train_batches(held, mirrored, batch_size=64, seed=0, start_step=0) as batches:
        flipped = next(batches)["image"]
    same = (flipped == stored).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~same], stored[~same][:, :, ::-1])
    assert 16 < same.sum() < 48


def test_some_records_are_spread_over_the_split_and_fewer_are_a_part_of_more():
    split = ImageSplit(DigitsSource("validation"), DIGITS)
    chosen = {number: some_records(split, number).chosen.tolist() for number in (20, 50)}
    assert set(chosen[20]) < set(chosen[50])
    assert chosen[50] == sorted(set(chosen[50]))
    assert chosen[50][0] < 100 and chosen[50][-1] >= 400
    assert some_records(split, 500) is split
    examples = some_records(split, 50).eval_examples(np.array([3, 49]))
    expected = split.eval_examples(np.array(chosen[50])[[3, 49]])
    for name in expected:
        np.testing.assert_array_equal(examples[name], expected[name])
