"""Every kind of file becomes the pixels that a viewer would show; crops are torchvision's."""

import io
import math
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from darl_jax.data import order
from darl_jax.data.images import decode as images
from darl_jax.data.images.decode import HostImage, UndecodableImageError
from darl_jax.data.sources.tfds import TfdsSource

HEIGHT, WIDTH = 40, 56


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth, so that JPEG keeps it, and without any symmetry."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = [4 * x + y, 255 - 5 * y, 20 + 2 * x + 3 * y]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray, color_type: int) -> bytes:
    """A 16-bit PNG by hand, for Pillow writes only gray ones."""

    def block(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", header)
        + block(b"IDAT", zlib.compress(rows))
        + block(b"IEND", b"")
    )


def difference(content: bytes, expected: np.ndarray, channels: int = 3) -> float:
    pixels = HostImage(content).pixels(channels)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*expected.shape[:2], channels)
    return float(np.abs(pixels.astype(float) - expected).max())


LOSSY = {"quality": 98, "subsampling": 0}


@pytest.mark.parametrize(
    ("file_format", "options", "loss"),
    [
        *((name, {}, 0) for name in ("PNG", "BMP", "TIFF", "PPM")),
        ("JPEG", LOSSY, 4),
        ("JPEG", LOSSY | {"progressive": True}, 4),
    ],
)
def test_color_and_gray_come_out_within_the_formats_own_loss(picture, file_format, options, loss):
    assert difference(encoded(Image.fromarray(picture), file_format, **options), picture) <= loss
    gray = picture[..., 2:]
    content = encoded(Image.fromarray(gray[..., 0]), file_format, **options)
    assert difference(content, np.repeat(gray, 3, axis=-1)) <= loss
    assert difference(content, gray, channels=1) <= loss


def test_color_becomes_luminance_for_one_channel(picture):
    luminance = picture @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    content = encoded(Image.fromarray(picture), "PNG")
    assert difference(content, luminance[..., None], channels=1) <= 1


def test_bilevel_and_palette_colors_are_looked_up(picture):
    bits = picture[..., 1] > 128
    expected = np.repeat(bits[..., None] * 255, 3, axis=-1)
    assert difference(encoded(Image.fromarray(bits), "PNG"), expected) == 0
    palette = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 200]], np.uint8)
    index = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3
    image = Image.fromarray(index.astype(np.uint8), "L")
    image.putpalette(palette.tobytes())
    for file_format in ("PNG", "GIF"):
        assert difference(encoded(image, file_format), palette[index]) == 0
    see_through = np.where(index[..., None] == 1, 255, palette[index])
    assert difference(encoded(image, "PNG", transparency=1), see_through) == 0
    assert difference(encoded(image, "GIF", transparency=1), see_through) == 0


def test_alpha_is_laid_over_white_and_one_transparent_color_is_white(picture):
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)[..., None]
    weight = alpha / 255
    color = encoded(Image.fromarray(np.concatenate([picture, alpha], -1)), "PNG")
    assert difference(color, picture * weight + 255 * (1 - weight)) <= 1
    gray = picture[..., :1]
    content = encoded(Image.fromarray(np.concatenate([gray, alpha], -1), "LA"), "PNG")
    assert difference(content, gray * weight + 255 * (1 - weight), channels=1) <= 1
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2] = (1, 2, 3)
    content = encoded(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3))
    expected = pixels.copy()
    expected[:, : WIDTH // 2] = 255
    assert difference(content, expected) == 0


def test_sixteen_bits_are_scaled_and_not_clipped():
    gray = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    expected = (gray / 257)[..., None]
    for file_format in ("PNG", "TIFF"):
        assert difference(encoded(Image.fromarray(gray), file_format), expected, channels=1) <= 0.5
    color = np.stack([gray, 65535 - gray, gray // 2], axis=-1)
    assert difference(png(color, color_type=2), color / 257) <= 1


def test_cmyk_and_ycck_jpegs_have_the_colors_that_their_inks_print(picture):
    inks = np.concatenate([255 - picture, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=-1)
    content = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=98)
    assert b"Adobe" in content  # Pillow writes it inverted, as Photoshop does.
    assert difference(content, picture) <= 5
    # libjpeg's jccolor.c makes YCCK by R = 255 - C; Photoshop hands it inverted inks, 255 - C, so
    # that YCbCr stands for the inks. Here the four planes are written as plain components and then
    # declared as YCCK in the Adobe marker.
    luma = np.asarray(Image.fromarray(255 - picture).convert("YCbCr"))
    planes = np.concatenate([luma, np.full((HEIGHT, WIDTH, 1), 255, np.uint8)], axis=-1)
    content = bytearray(encoded(Image.fromarray(255 - planes, "CMYK"), "JPEG", quality=98))
    transform = content.index(b"Adobe") + 11
    assert content[transform] == 0
    content[transform] = 2
    assert difference(bytes(content), picture) <= 6


# EXIF 2.32, tag 274: which side of the picture the stored row 0 and column 0 are.
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_undone(picture, orientation, file_format):
    row_side, column_side = SIDES[orientation]
    stored = picture
    if "bottom" in (row_side, column_side):
        stored = stored[::-1]
    if "right" in (row_side, column_side):
        stored = stored[:, ::-1]
    if row_side in ("left", "right"):
        stored = stored.transpose(1, 0, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": LOSSY, "WEBP": {"lossless": True}}.get(file_format, {})
    stored_image = Image.fromarray(np.ascontiguousarray(stored))
    content = encoded(stored_image, file_format, exif=exif, **options)
    assert difference(content, picture) <= (4 if file_format == "JPEG" else 0)
    box = (3.0, 5.0, 43.0, 29.0)
    expected = Image.fromarray(picture).resize((16, 16), Image.Resampling.BICUBIC, box=box)
    cropped = HostImage(content).render(box, 16, 3)
    assert np.abs(cropped.astype(int) - np.asarray(expected)).max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_leaves_the_pixels_as_they_stand(picture):
    content = encoded(Image.fromarray(picture), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk")
    assert difference(content, picture) == 0


@pytest.mark.parametrize("kind", ["text", "international", "icc"])
def test_png_with_megabytes_of_text_or_color_profile_is_read(picture, kind):
    info = PngImagePlugin.PngInfo()
    if kind == "text":
        info.add_text("prompt", "x" * 5_000_000, zip=True)
    elif kind == "international":
        info.add_itxt("prompt", "x" * 5_000_000, zip=True)
    profile = {"icc_profile": b"y" * 5_000_000} if kind == "icc" else {}
    content = encoded(Image.fromarray(picture), "PNG", pnginfo=info, **profile)
    np.testing.assert_array_equal(HostImage(content).pixels(3), picture)


def test_truncated_and_foreign_files_are_errors_with_a_reason(picture):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for file_format in ("JPEG", "PNG", "GIF", "WEBP"):
        whole = encoded(Image.fromarray(noise), file_format)
        for fraction in (0.0, 0.3, 0.9):
            with pytest.raises(UndecodableImageError, match=r"\w"):
                HostImage(whole[: int(len(whole) * fraction)]).render((0.0, 0.0, 64.0, 64.0), 8, 3)
    with pytest.raises(UndecodableImageError, match="no image format that Pillow knows"):
        HostImage(b"<html>404</html>")
    floats = Image.fromarray(picture[..., 0].astype(np.float32))
    with pytest.raises(UndecodableImageError, match="32-bit floats"):
        HostImage(encoded(floats, "TIFF")).pixels(3)


@pytest.mark.parametrize("side", [9_500, 60_000])
def test_decompression_bomb_is_an_error_and_not_a_warning(side):
    content = bytearray(encoded(Image.new("RGB", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UndecodableImageError, match="pixels"):
            HostImage(bytes(content))


def test_render_is_pillows_antialiased_bicubic_of_the_box(picture):
    box = (3.0, 2.0, 50.0, 31.0)
    expected = Image.fromarray(picture).resize((24, 24), Image.Resampling.BICUBIC, box=box)
    content = encoded(Image.fromarray(picture), "PNG")
    np.testing.assert_array_equal(HostImage(content).render(box, 24, 3), np.asarray(expected))
    from_pixels = HostImage(picture).render(box, 24, 3)
    np.testing.assert_array_equal(from_pixels, np.asarray(expected))


def test_large_jpeg_decoded_at_lower_resolution_looks_the_same(tfds_dir):
    # Photographs enlarged, so that the decoder works at 1/2, 1/4 and 1/8 of the resolution. The
    # bound is below what JPEG itself costs at quality 95.
    photographs = TfdsSource("imagenet2012", "validation", tfds_dir).read(range(4))
    for record in photographs:
        photograph = Image.open(io.BytesIO(record.image)).convert("RGB")
        for side in (430, 850, 1700):
            large = photograph.resize((side, side), Image.Resampling.BICUBIC)
            content = encoded(large, "JPEG", quality=95)
            box = (side * 0.04, side * 0.01, side * 0.98, side * 0.99)
            fast = HostImage(content).render(box, 64, 3).astype(float)
            image = Image.open(io.BytesIO(content)).convert("RGB")
            full = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC, box=box))
            assert np.abs(fast - full).mean() < 0.7


def torchvisions_box(uniforms: np.ndarray, height: int, width: int, scale, ratio) -> tuple:
    """torchvision's transforms.RandomResizedCrop.get_params, number by number."""
    for attempt in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[attempt])
        log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(log_low + (log_high - log_low) * uniforms[10 + attempt])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(uniforms[-3] * (width - w + 1)), int(uniforms[-2] * (height - h + 1))
            return (left, top, left + w, top + h)
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h)


def test_crops_are_torchvisions_for_the_same_random_numbers():
    count = 500
    rng = np.random.default_rng(0)
    height, width = rng.integers(1, 400, count), rng.integers(1, 400, count)
    index = np.arange(count)
    uniforms = order.uniforms(7, np.zeros(count, np.int64), index, images.UNIFORMS_PER_RECORD)
    for scale, ratio in (((0.2, 1.0), (3 / 4, 4 / 3)), ((1.0, 1.0), (1.0, 1.0))):
        boxes = images.random_resized_crops(uniforms, height, width, scale, ratio)
        for i in index:
            expected = torchvisions_box(uniforms[i], height[i], width[i], scale, ratio)
            assert tuple(boxes[i]) == expected
    square = images.random_resized_crops(uniforms, 8 + 0 * height, 8 + 0 * width, scale, ratio)
    assert (square == (0, 0, 8, 8)).all()  # whole, with scale and ratio of one
    assert abs(images.random_flips(uniforms).mean() - 0.5) < 0.1


def test_central_box_is_resize_then_center_crop():
    # Short side to 256, center 224, on a landscape image of 512 x 300.
    left, top, right, bottom = images.central_box(300, 512, 0.875)
    scale = 256 / 300
    assert (right - left) * scale == pytest.approx(224)
    assert (bottom - top) * scale == pytest.approx(224)
    assert left + right == 512 and top + bottom == 300
