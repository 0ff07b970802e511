"""Decodes an image to the model's pixels, in one pass on the host.

An image is decoded, turned upright, cropped and resized with one antialiased bicubic filter
(Table 8: random resized crop with bicubic interpolation, horizontal flip). What comes out is always
uint8 of (height, width, channel) with 1 or 3 channels.

Settled here, for what the paper does not say: transparent pixels are laid over white; ICC profiles
are ignored; of an animation the first frame counts; 16-bit gray is scaled, not clipped.
"""

import contextlib
import io
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from PIL import Image, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError

from darl_jax.data.images import simd

# torchvision's RandomResizedCrop tries 10 boxes before it falls back to a central one.
CROP_ATTEMPTS = 10
# For each record: two numbers for every attempt, two for the position, one for the flip.
UNIFORMS_PER_RECORD = 2 * CROP_ATTEMPTS + 3
# A JPEG is decoded at 1/2, 1/4 or 1/8 only where the crop then still has this many times the
# output's pixels on each side, so that the bicubic filter still does the antialiasing. On
# photographs at 3, the result is 0.3 gray levels from that of the full decode in the mean, and no
# more than 0.2 (RMS) further from the picture before it was compressed; at 2 it would be 0.7.
DRAFT_MARGIN = 3
# More pixels than this are an attack or an accident: Pillow's own threshold for its warning.
MAX_PIXELS = 89_478_485
BACKGROUND = (255, 255, 255)
# Drawing and generating programs write megabytes of text and color profiles into PNGs, at which
# Pillow gives up. They may be as large as the pixels of the largest image.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 3 * MAX_PIXELS

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112

Box = tuple[float, float, float, float]


class UndecodableImageError(ValueError):
    """These bytes are no image that can be decoded; the message is the reason alone."""


class HostImage:
    """An image whose header is read and whose pixels are decoded when they are asked for.

    Attributes:
      height: rows after the image has been turned upright.
      width: columns after the image has been turned upright.

    Raises:
      UndecodableImageError: the bytes are no image, or too large (here and in every method).
    """

    def __init__(self, source: bytes | UInt8[np.ndarray, "height width channel"]):
        self._image = _open(source)
        self._orientation = _orientation(self._image)
        self.width, self.height = self._image.size
        if self._orientation >= 5:
            self.width, self.height = self.height, self.width

    def render(
        self, box: Box, size: int, channels: int, resizer: str = "pillow"
    ) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
        """Decodes, crops to `box` and resizes to `size` x `size`.

        Call it once: a JPEG may be decoded at a lower resolution than its own for this one box.

        Args:
          box: in pixels of the upright image; fractions are allowed.
          size: rows and columns of the result.
          channels: 3 for RGB, 1 for luminance (ITU-R 601).
          resizer: "pillow", or "simd", which is faster and may be a gray level off. It is for
            JPEGs, whose decoders differ by as much; lossless images are resized by Pillow.
        """
        fast = resizer == "simd" and isinstance(self._image, JpegImagePlugin.JpegImageFile)
        if fast:
            simd.resizer()
        with _undecodable():
            box = self._draft(box, size)
            upright = self._upright()
            if fast:
                pixels = simd.resize_box(upright, box, size)
                if pixels.shape[-1] == channels:
                    return pixels
                resized = Image.fromarray(pixels[..., 0] if channels == 3 else pixels)
            else:
                resized = upright.resize((size, size), Image.Resampling.BICUBIC, box=box)
            return _to_array(resized, channels)

    def pixels(self, channels: int) -> UInt8[np.ndarray, "height width {channels}"]:
        """The whole upright image at its own resolution."""
        with _undecodable():
            return _to_array(self._upright(), channels)

    def _upright(self) -> Image.Image:
        plain = _plain(self._image)
        if self._orientation in _UPRIGHT:
            return plain.transpose(_UPRIGHT[self._orientation])
        return plain

    def _draft(self, box: Box, size: int) -> Box:
        if not isinstance(self._image, JpegImagePlugin.JpegImageFile):
            return box
        spare = min(box[2] - box[0], box[3] - box[1]) / (DRAFT_MARGIN * size)
        scale = max(s for s in (1, 2, 4, 8) if s == 1 or s <= spare)
        if scale == 1:
            return box
        width, height = self._image.size
        self._image.draft(None, (width // scale, height // scale))
        return (box[0] / scale, box[1] / scale, box[2] / scale, box[3] / scale)


def _open(source: bytes | np.ndarray) -> Image.Image:
    if isinstance(source, np.ndarray):
        return Image.fromarray(source[..., 0] if source.shape[-1] == 1 else source)
    with _undecodable():
        image = Image.open(io.BytesIO(source))
        if image.width * image.height > MAX_PIXELS:
            raise UndecodableImageError(
                f"it claims {image.width} x {image.height} pixels, more than {MAX_PIXELS}"
            )
        # Outside JPEG, orientation may stand after the pixels, and TIFF turns itself on loading.
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            image.load()
        return image


@contextlib.contextmanager
def _undecodable() -> Iterator[None]:
    """One type for the many that Pillow's decoders raise on corrupt data."""
    try:
        yield
    except (UndecodableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImageError("it is in no image format that Pillow knows") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UndecodableImageError(reason) from error


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info and image.format == "JPEG":
        return 1
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Broken metadata says nothing about the pixels: they stand as they are.
        return 1


def _plain(image: Image.Image) -> Image.Image:
    """The same picture in mode L or RGB, what is transparent laid over white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        gray = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((gray * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "integers" if image.mode == "I" else "floats"
        raise UndecodableImageError(f"its pixels are 32-bit {kind}, which have no defined white")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image.load()
        opaque = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image  # `convert` would copy it
    return image.convert("L" if image.mode == "1" else "RGB")


def _to_array(image: Image.Image, channels: int) -> UInt8[np.ndarray, "height width {channels}"]:
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def random_resized_crops(
    uniforms: Float64[np.ndarray, "n draws"],
    height: Int64[np.ndarray, " n"],
    width: Int64[np.ndarray, " n"],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Int64[np.ndarray, "n 4"]:
    """Boxes (left, top, right, bottom) in pixels, as torchvision's RandomResizedCrop draws them.

    The area is uniform in `scale`, as a fraction of the image's; the aspect ratio (width over
    height) is log-uniform in `ratio`. Ten tries, on UNIFORMS_PER_RECORD numbers in [0, 1); then
    the largest central box whose ratio is within `ratio`. MAE's pre-training, whose recipe Table 8
    follows, crops the same way.
    """
    tries = uniforms[:, : 2 * CROP_ATTEMPTS].reshape(-1, 2, CROP_ATTEMPTS)
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * tries[:, 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * tries[:, 1])
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])

    rows = np.arange(len(fits))
    first = fits.argmax(axis=1)
    found = fits[rows, first]
    central_width = np.minimum(width, np.rint(height * ratio[1]).astype(np.int64))
    central_height = np.minimum(height, np.rint(width / ratio[0]).astype(np.int64))
    box_width = np.where(found, widths[rows, first], central_width)
    box_height = np.where(found, heights[rows, first], central_height)

    spare_x, spare_y = width - box_width, height - box_height
    left = np.floor(uniforms[:, -3] * (spare_x + 1)).astype(np.int64)
    top = np.floor(uniforms[:, -2] * (spare_y + 1)).astype(np.int64)
    left = np.where(found, left, spare_x // 2)
    top = np.where(found, top, spare_y // 2)
    return np.stack([left, top, left + box_width, top + box_height], axis=1)


def random_flips(uniforms: Float64[np.ndarray, "n draws"]) -> Bool[np.ndarray, " n"]:
    """Mask of the mirrored images, each with probability 1/2."""
    return uniforms[:, -1] < 0.5


def central_box(height: int, width: int, fraction: float) -> Box:
    """The central square whose side is `fraction` of the image's short side, in pixels.

    To resize this box to `size` is to resize the short side to size/fraction and crop the center,
    with one filter in place of two steps. The box keeps its fractions of a pixel.
    """
    side = min(height, width) * fraction
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)
