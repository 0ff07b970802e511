"""Which images are asked for: from nothing, from the first patches on, or a region anew."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from darl_jax.data.images.decode import HostImage, UndecodableImageError
from darl_jax.nn.orders import OrderConfig, fixed_order
from darl_jax.nn.positions import Grid


class Request(NamedTuple):
    """Images to make.

    Attributes:
      originals: images that some patches are taken from; black for images from nothing.
      names: of the originals, for file names; empty for images from nothing.
      each: how many images for each original.
      known: how many patches are taken, the first of the order.
      order: in which patches are made; None is the model's own.
    """

    originals: UInt8[np.ndarray, "original height width channel"]
    names: Sequence[str]
    each: int
    known: int
    order: Int[np.ndarray, " place"] | None


def from_nothing(
    number: int, shape: tuple[int, int, int], order: Int[np.ndarray, " place"] | None = None
) -> Request:
    """Unconditional images of (height, width, channels)."""
    if number < 1:
        raise ValueError(f"--number={number} must be at least 1")
    return Request(np.zeros((1, *shape), np.uint8), [], number, 0, order)


def region_order(region: str, grid: Grid) -> tuple[Int[np.ndarray, " place"], int]:
    """An order that has a region of the image last, and how many patches come before it.

    Args:
      region: 'FIRST_ROW:END_ROW,FIRST_COLUMN:END_COLUMN', in patches, ends not included.
      grid: (rows, columns) of patches.

    Raises:
      ValueError: this is no region of the grid.
    """
    found = re.fullmatch(r"(\d+):(\d+),(\d+):(\d+)", region)
    top, bottom, left, right = map(int, found.groups()) if found else (0, 0, 0, 0)
    if not (top < bottom <= grid[0] and left < right <= grid[1]):
        raise ValueError(
            f"--region={region} is no region of the grid of {grid[0]} x {grid[1]} patches; give "
            "rows and columns of patches as FIRST:END,FIRST:END, for example "
            f"{grid[0] // 2}:{grid[0]},0:{grid[1]} for the lower half"
        )
    region_mask = np.zeros(grid, bool)
    region_mask[top:bottom, left:right] = True
    raster, inside = np.arange(math.prod(grid)), region_mask.ravel()
    return np.concatenate([raster[~inside], raster[inside]]), int((~inside).sum())


def named_order(text: str, grid: Grid) -> Int[np.ndarray, " place"]:
    """The order that NAME, NAME:BLOCK or permutation:SEED stands for. Raises ValueError."""
    name, _, number = text.partition(":")
    if number and not number.isdigit():
        raise ValueError(f"--order={text}: {number!r} is no number; for example nested_raster:2")
    key = "seed" if name == "permutation" else "block"
    try:
        return fixed_order(OrderConfig(name, **({key: int(number)} if number else {})), grid)
    except ValueError as error:
        raise ValueError(f"--order={text}: {error}") from error


def read_images(
    paths: Sequence[str], size: int, channels: int
) -> tuple[UInt8[np.ndarray, "image height width channel"], list[str]]:
    """Images of the model's own size, and their names.

    Args:
      paths: files, or folders whose images are all taken.
      size: rows and columns that the model has.
      channels: that the model has.

    Raises:
      ValueError: a file is no image, or of another size.
      FileNotFoundError: there is no such file, or no image in a folder.
    """
    images: list[np.ndarray] = []
    names: list[str] = []
    for path in _files(paths):
        try:
            pixels = HostImage(path.read_bytes()).pixels(channels)
        except UndecodableImageError as error:
            raise ValueError(f"--images: {path} cannot be decoded: {error}") from error
        height, width, _ = pixels.shape
        if (height, width) != (size, size):
            raise ValueError(
                f"--images: {path} has {height} x {width} pixels, and the model makes images of "
                f"{size} x {size}: resize it first"
            )
        images.append(pixels)
        # Two files of one name, from two folders, are told apart by where they stand.
        names.append(path.stem if path.stem not in names else f"{path.stem}_{len(names)}")
    return np.stack(images), names


_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def _files(paths: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES)
            if not found:
                raise FileNotFoundError(f"--images: the folder {path} holds no image")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"--images: there is no file or folder {path}")
    return files
