"""The fast resize is Pillow's, but for the last bit of its weights."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from darl_jax.data.images import decode as images
from darl_jax.data.images import resample, simd
from darl_jax.data.images.decode import HostImage
from darl_jax.data.sources.tfds import TfdsSource

BOXES = [(3.0, 1.0, 290.0, 240.0), (0.0, 0.0, 300.0, 250.0), (10.25, 20.5, 90.75, 71.0)]


def exact(pixels: np.ndarray, box: tuple, size: int) -> np.ndarray:
    """Keys' bicubic filter in float64, without rounding between the passes."""
    left, top, right, bottom = np.array(box)[:, None]
    across = resample.bicubic_matrices(left, right, pixels.shape[1], size)[0].astype(np.float64)
    down = resample.bicubic_matrices(top, bottom, pixels.shape[0], size)[0].astype(np.float64)
    result = np.einsum("ih,hwc,jw->ijc", down, pixels.astype(np.float64), across, optimize=True)
    return result.clip(0, 255)


def photographs(tfds_dir: str) -> list[Image.Image]:
    records = TfdsSource("imagenet2012", "validation", tfds_dir).read(range(12))
    pictures = [Image.open(io.BytesIO(record.image)).convert("RGB") for record in records]
    return [picture.resize((300, 250)) for picture in pictures]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [224, 64])
def test_photographs_are_as_near_to_the_exact_result_as_pillows(
    tfds_dir: str, box: tuple, size: int
) -> None:
    ours, pillows = [], []
    for picture in photographs(tfds_dir):
        expected = exact(np.asarray(picture), box, size)
        ours.append(np.abs(simd.resize_box(picture, box, size) - expected).mean())
        pillow = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
        pillows.append(np.abs(np.asarray(pillow) - expected).mean())
    assert np.mean(ours) < np.mean(pillows) * 1.01 + 0.001


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("box", BOXES)
def test_each_pass_is_pillows_within_a_gray_level(mode: str, box: tuple) -> None:
    # Noise of black and white overshoots the most, and so shows where the passes are clipped.
    shape = (250, 300, 3) if mode == "RGB" else (250, 300)
    noise = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8) * 255
    image = Image.fromarray(noise)
    size = 64
    rows = image.resize((size, 250), Image.Resampling.BICUBIC, box=(box[0], 0, box[2], 250))
    both = rows.resize((size, size), Image.Resampling.BICUBIC, box=(0, box[1], size, box[3]))
    expected = np.asarray(both).reshape(size, size, -1)
    result = simd.resize_box(image, box, size)
    difference = np.abs(result.astype(int) - expected)
    # One level in the first pass may move the second by one more.
    assert result.shape == expected.shape
    assert difference.max() <= 2 and difference.mean() < 0.05


def test_render_takes_it_for_jpegs_alone(tfds_dir: str) -> None:
    picture = photographs(tfds_dir)[0]
    for file_format, channels in (("JPEG", 3), ("JPEG", 1), ("PNG", 3)):
        buffer = io.BytesIO()
        picture.save(buffer, file_format)
        fast, slow = (
            HostImage(buffer.getvalue()).render(BOXES[0], 64, channels, resizer)
            for resizer in ("simd", "pillow")
        )
        assert fast.shape == slow.shape == (64, 64, channels)
        difference = np.abs(fast.astype(int) - slow)
        assert difference.mean() < 0.05
        assert (difference.max() == 0) == (file_format == "PNG")
    gray = io.BytesIO()
    picture.convert("L").save(gray, "JPEG")
    for channels in (1, 3):
        fast = HostImage(gray.getvalue()).render(BOXES[0], 64, channels, "simd")
        slow = HostImage(gray.getvalue()).render(BOXES[0], 64, channels, "pillow")
        assert fast.shape == (64, 64, channels)
        assert np.abs(fast.astype(int) - slow).mean() < 0.05


def test_missing_package_is_an_error_that_says_what_to_do(
    tfds_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = TfdsSource("imagenet2012", "validation", tfds_dir).read([0])[0].image
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    monkeypatch.delattr(simd._thread, "resizer", raising=False)
    with pytest.raises(ImportError, match=r"pip install cykooz-resizer, or set data\.resizer"):
        images.HostImage(content).render((0.0, 0.0, 64.0, 64.0), 32, 3, "simd")
