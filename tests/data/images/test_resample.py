"""The batched resize is Pillow's."""

import numpy as np
import pytest
from PIL import Image

from darl_jax.data import order
from darl_jax.data.images import decode as images
from darl_jax.data.images import resample


def boxes_of(count: int, height: int, width: int) -> np.ndarray:
    zeros = np.zeros(count, np.int64)
    uniforms = order.uniforms(0, zeros, np.arange(count), images.UNIFORMS_PER_RECORD)
    return images.random_resized_crops(
        uniforms, zeros + height, zeros + width, (0.1, 1.0), (1 / 2, 2.0)
    )


@pytest.mark.parametrize(
    ("height", "width", "out", "channels"),
    [(32, 32, 32, 3), (20, 31, 12, 1), (8, 8, 17, 1), (96, 96, 64, 3)],
)
def test_batched_crops_equal_pillows_within_a_gray_level(height, width, out, channels):
    # Noise of black and white overshoots the most, and so shows where the passes are clipped.
    noise = np.random.default_rng(0).integers(0, 2, (64, channels, height, width)) * 255
    pixels = noise.astype(np.uint8)
    boxes = boxes_of(64, height, width)
    batched = resample.resize_crops(pixels, boxes, out)
    for i in range(64):
        rows = pixels[i].transpose(1, 2, 0)
        image = Image.fromarray(rows[..., 0] if channels == 1 else rows)
        box = tuple(boxes[i].tolist())
        expected = np.asarray(image.resize((out, out), Image.Resampling.BICUBIC, box=box))
        difference = batched[i].transpose(1, 2, 0).astype(int) - expected.reshape(
            out, out, channels
        )
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 40.0, 30.0), (3.5, 2.25, 30.0, 29.9), (10.0, 3.0, 14.0, 6.5)]
)
def test_one_box_for_all_equals_pillows_within_a_gray_level(box):
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 30, 40), dtype=np.uint8)
    batched = resample.resize_box(pixels, box, 16)
    for i in range(5):
        image = Image.fromarray(pixels[i].transpose(1, 2, 0))
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC, box=box))
        assert np.abs(batched[i].transpose(1, 2, 0).astype(int) - expected).max() <= 1


def test_whole_image_at_its_own_size_is_untouched():
    pixels = np.random.default_rng(2).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    boxes = np.tile([0, 0, 8, 8], (4, 1))
    np.testing.assert_array_equal(resample.resize_crops(pixels, boxes, 8), pixels)
    np.testing.assert_array_equal(resample.resize_box(pixels, (0.0, 0.0, 8.0, 8.0), 8), pixels)


def test_table_and_matrices_made_for_the_batch_agree(monkeypatch):
    pixels = np.random.default_rng(3).integers(0, 256, (32, 3, 16, 16), dtype=np.uint8)
    boxes = boxes_of(32, 16, 16)
    from_table = resample.resize_crops(pixels, boxes, 16)
    monkeypatch.setattr(resample, "_TABLE_BYTES", 0)
    np.testing.assert_array_equal(resample.resize_crops(pixels, boxes, 16), from_table)
