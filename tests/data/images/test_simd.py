"""The fast resize is Pillow's, but for the last bit of its weights."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from darl_jax.data.images import simd
from darl_jax.data.images.decode import HostImage

BOXES = [(3.0, 1.0, 290.0, 240.0), (0.0, 0.0, 300.0, 250.0), (10.25, 20.5, 90.75, 71.0)]


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


def test_render_takes_it_for_jpegs_alone() -> None:
    smooth = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    color = Image.fromarray(smooth).resize((300, 250), Image.Resampling.BICUBIC)
    for mode, file_format, channels in (
        ("RGB", "JPEG", 3), ("RGB", "JPEG", 1), ("L", "JPEG", 3), ("L", "JPEG", 1),
        ("RGB", "PNG", 3),
    ):  # fmt: skip
        buffer = io.BytesIO()
        color.convert(mode).save(buffer, file_format)
        fast, slow = (
            HostImage(buffer.getvalue()).render(BOXES[0], 64, channels, resizer)
            for resizer in ("simd", "pillow")
        )
        assert fast.shape == slow.shape == (64, 64, channels)
        difference = np.abs(fast.astype(int) - slow)
        assert difference.mean() < 0.05
        assert (difference.max() == 0) == (file_format == "PNG")


def test_missing_package_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    monkeypatch.delattr(simd._thread, "resizer", raising=False)
    with pytest.raises(ImportError, match=r"pip install cykooz-resizer, or set data\.resizer"):
        HostImage(buffer.getvalue()).render((0.0, 0.0, 64.0, 64.0), 32, 3, "simd")
