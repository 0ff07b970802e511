"""Generation requests: unconditional images, completions, or regions."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.decode import HostImage, UndecodableImageError, central_box
from darl_jax.nn.positions import Grid

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class Request(NamedTuple):
    """Images to generate.

    Attributes:
      originals: images to keep patches of; black for unconditional images.
      names: file names of the originals; empty for unconditional images.
      each: number of images per original.
      known: number of patches to keep, the first ones of the order.
      order: order of generation; None for the model's own.
    """

    originals: UInt8[np.ndarray, "original height width channel"]
    names: Sequence[str]
    each: int
    known: int
    order: Int[np.ndarray, " position"] | None


def from_nothing(number: int, shape: Sequence[int]) -> Request:
    """Unconditional images of (height, width, channels)."""
    if number < 1:
        raise ValueError(f"--number={number} must be at least 1")
    return Request(np.zeros((1, *shape), np.uint8), [], number, 0, None)


def region_order(region: Sequence[str], grid: Grid) -> tuple[Int[np.ndarray, " position"], int]:
    """Order with a region of the image last, and the number of patches before the region.

    Args:
      region: first row, end row, first column and end column, in patches; ends not included.
      grid: (rows, columns) of patches.

    Raises:
      ValueError: the region is malformed or not in the grid.
    """
    top, bottom, left, right = (0, 0, 0, 0)
    if len(region) == 4 and all(number.isdigit() for number in region):
        top, bottom, left, right = map(int, region)
    if not (top < bottom <= grid[0] and left < right <= grid[1]):
        raise ValueError(
            f"--region={','.join(region)} is no region of the grid of {grid[0]} x {grid[1]} "
            "patches; give first row, end row, first column and end column, for example "
            f"{grid[0] // 2},{grid[0]},0,{grid[1]} for the lower half"
        )
    region_mask = np.zeros(grid, bool)
    region_mask[top:bottom, left:right] = True
    raster, inside = np.arange(math.prod(grid)), region_mask.ravel()
    return np.concatenate([raster[~inside], raster[inside]]), int((~inside).sum())


def read_images(
    files: Sequence[Path], data: ImagesConfig
) -> UInt8[np.ndarray, "image height width channel"]:
    """Reads images; those of another size are cropped and resized as in evaluation.

    Raises:
      ValueError: a file cannot be decoded.
    """
    images: list[np.ndarray] = []
    resized = 0
    for path in files:
        try:
            image = HostImage(path.read_bytes())
            if (image.height, image.width) == (data.image_size, data.image_size):
                images.append(image.pixels(data.channels))
            else:
                resized += 1
                box = central_box(image.height, image.width, data.eval_crop)
                images.append(image.render(box, data.image_size, data.channels, data.resizer))
        except UndecodableImageError as error:
            raise ValueError(f"--images: {path} cannot be decoded: {error}") from error
    if resized:
        logging.log_first_n(
            logging.INFO,
            "%d of %d images are cropped and resized to %d x %d pixels, as in evaluation",
            1,
            *(resized, len(images), data.image_size, data.image_size),
        )
    return np.stack(images)


def file_names(files: Sequence[Path]) -> list[str]:
    """Names without suffix; repeated names get an index."""
    names: list[str] = []
    for path in files:
        names.append(path.stem if path.stem not in names else f"{path.stem}_{len(names)}")
    return names


def image_files(paths: Sequence[str], flag: str) -> list[Path]:
    """Lists image files, those of folders sorted. Raises FileNotFoundError, naming the flag."""
    files: list[Path] = []
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES)
            if not found:
                raise FileNotFoundError(f"{flag}: the folder {path} holds no image")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"{flag}: there is no file or folder {path}")
    return files
