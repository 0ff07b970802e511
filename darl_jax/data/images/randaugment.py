"""RandAugment (Cubuk et al., 2020, arXiv:1909.13719) on the host, for fine-tuning.

Fine-tuning recipes write it (9, 0.5), or `rand-m9-mstd0.5-inc1` in timm: for each image
`num_ops` of 15 operations are drawn uniformly with replacement, each is done with probability
`probability`, and how strongly is drawn from N(magnitude, std), within 0 and 10. Operations grow
stronger with the magnitude ("increasing"), and those that have two directions take either with
probability 1/2.

Settled here, where recipes differ: rotations, shears and translations interpolate bicubically, and
what they leave empty is filled with the mean color of the data. With one channel all is the same,
and Color does nothing.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageEnhance, ImageOps
from scipy.special import ndtri

from darl_jax.data import order

MAX_MAGNITUDE = 10.0

_BICUBIC = Image.Resampling.BICUBIC
# For each operation: which one, whether, how strongly, which way.
_UNIFORMS_PER_OPERATION = 4
# The smallest uniform number that is not 0, whose Gaussian would be infinite.
_SMALLEST = 2.0**-53

Fill = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class RandAugmentConfig:
    """Strength of the distortion of training images; fine-tuning has magnitude 9."""

    magnitude: float = 0.0  # the mean strength, of 10; 0 leaves RandAugment out
    std: float = 0.5  # standard deviation of the strength
    num_ops: int = 2  # how many operations are drawn for an image
    probability: float = 0.5  # with which each of them is done

    def __post_init__(self) -> None:
        for key, valid, rule in (
            ("magnitude", 0 <= self.magnitude <= MAX_MAGNITUDE, "between 0, for none, and 10"),
            ("std", self.std >= 0, "0 or more"),
            ("num_ops", self.num_ops >= 1, "at least 1"),
            ("probability", 0 <= self.probability <= 1, "in [0, 1]"),
        ):
            if not valid:
                value = getattr(self, key)
                raise ValueError(f"data.randaugment.{key} is {value}; it must be {rule}")


class Operation(NamedTuple):
    """One thing to do to an image."""

    name: str  # a key of OPERATIONS
    strength: float  # magnitude / 10, with a sign, which counts where there are two directions


def _moved(
    image: Image.Image,
    fill: Fill,
    *,
    shear: tuple[float, float] = (0.0, 0.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Image.Image:
    """Each pixel (x, y) from where (x + shear_x y + shift_x, y + shear_y x + shift_y) was."""
    matrix = (1.0, shear[0], shift[0], shear[1], 1.0, shift[1])
    affine = Image.Transform.AFFINE
    return image.transform(image.size, affine, matrix, resample=_BICUBIC, fillcolor=fill)


def _enhance(image: Image.Image, kind: Any, strength: float) -> Image.Image:
    """Towards 0.1 or 1.9 times what `kind` enhances; 1 is the image itself."""
    return kind(image).enhance(max(0.1, 1 + 0.9 * strength))


def _by_level(image: Image.Image, table: Callable[[int], int]) -> Image.Image:
    return image.point([table(level) for level in range(256)] * len(image.getbands()))


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest bits of each value; none leave black, which Pillow's own refuses."""
    mask = 0xFF00 >> bits & 0xFF
    return _by_level(image, lambda level: level & mask)


def _solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """The darker half of the levels becomes brighter."""
    return _by_level(image, lambda level: min(255, level + amount) if level < 128 else level)


# What each does at strength s. Where the sign does not count s is taken without it.
OPERATIONS: dict[str, Callable[[Image.Image, float, Fill], Image.Image]] = {
    "AutoContrast": lambda image, s, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, s, fill: ImageOps.equalize(image),
    "Invert": lambda image, s, fill: ImageOps.invert(image),
    # Up to 30 degrees.
    "Rotate": lambda image, s, fill: image.rotate(30 * s, _BICUBIC, fillcolor=fill),
    # From 4 bits of each value down to none.
    "Posterize": lambda image, s, fill: _posterize(image, 4 - int(4 * abs(s))),
    # Inverts the levels from a threshold on, which goes from 256 down to 0.
    "Solarize": lambda image, s, fill: ImageOps.solarize(image, 256 - int(256 * abs(s))),
    # Up to 110 of 255 levels.
    "SolarizeAdd": lambda image, s, fill: _solarize_add(image, int(110 * abs(s))),
    "Color": lambda image, s, fill: _enhance(image, ImageEnhance.Color, s),
    "Contrast": lambda image, s, fill: _enhance(image, ImageEnhance.Contrast, s),
    "Brightness": lambda image, s, fill: _enhance(image, ImageEnhance.Brightness, s),
    "Sharpness": lambda image, s, fill: _enhance(image, ImageEnhance.Sharpness, s),
    # Up to 0.3 of a pixel for each pixel.
    "ShearX": lambda image, s, fill: _moved(image, fill, shear=(0.3 * s, 0.0)),
    "ShearY": lambda image, s, fill: _moved(image, fill, shear=(0.0, 0.3 * s)),
    # Up to 0.45 of the image's side.
    "TranslateX": lambda image, s, fill: _moved(image, fill, shift=(0.45 * s * image.width, 0.0)),
    "TranslateY": lambda image, s, fill: _moved(image, fill, shift=(0.0, 0.45 * s * image.height)),
}


def draw(
    config: RandAugmentConfig,
    seed: int,
    epoch: Int64[np.ndarray, " n"],
    index: Int64[np.ndarray, " n"],
) -> list[list[Operation]]:
    """Operations on each record, in their order: a pure function of (seed, epoch, record)."""
    if config.magnitude == 0:
        return [[] for _ in index]
    count = config.num_ops * _UNIFORMS_PER_OPERATION
    uniforms = order.uniforms(seed, epoch, index, count, stream=order.STREAM_RANDAUGMENT)
    which, whether, how_much, way = np.moveaxis(
        uniforms.reshape(-1, config.num_ops, _UNIFORMS_PER_OPERATION), -1, 0
    )
    number = (which * len(OPERATIONS)).astype(np.int64)
    done = whether < config.probability
    magnitude = config.magnitude + config.std * ndtri(np.maximum(how_much, _SMALLEST))
    strength = np.clip(magnitude, 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    strength = np.where(way < 0.5, -strength, strength)
    names = [*OPERATIONS]
    return [
        [Operation(names[n], float(s)) for n, s, d in zip(*row, strict=True) if d]
        for row in zip(number, strength, done, strict=True)
    ]


def apply(
    pixels: UInt8[np.ndarray, "height width channel"],
    operations: Sequence[Operation],
    mean: Sequence[float],
) -> UInt8[np.ndarray, "height width channel"]:
    """The image after these operations; the mean in [0, 1] colors what moves into the image."""
    if not operations:
        return pixels
    levels = tuple(min(255, round(255 * value)) for value in mean)
    gray = pixels.shape[-1] == 1
    fill = levels[0] if gray else levels
    image = Image.fromarray(pixels[..., 0] if gray else np.ascontiguousarray(pixels))
    for name, strength in operations:
        image = OPERATIONS[name](image, strength, fill)
    result = np.asarray(image)
    return result[..., None] if gray else result
