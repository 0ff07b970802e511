"""Grids of images in one picture."""

import numpy as np
from jaxtyping import UInt8

_SMALLEST_SIDE = 64  # pixels; smaller images are magnified by an integer, without smoothing
_GAP = 4  # pixels around each image; a frame is one pixel narrower
_RED = (214, 39, 40)


def image_grid(
    images: UInt8[np.ndarray, "rows columns height width channel"], *, frame_first: bool = False
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws rows of images on white.

    `frame_first` puts the first image of each row in a red frame, as the originals of Figure 7.
    """
    rows, columns, height, width, channels = images.shape
    factor = max(1, -(-_SMALLEST_SIDE // height))
    images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    images = np.broadcast_to(images, (*images.shape[:4], 3)) if channels == 1 else images
    height, width = height * factor, width * factor
    cell_height, cell_width = height + 2 * _GAP, width + 2 * _GAP
    canvas = np.full((rows * cell_height, columns * cell_width, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            cell = canvas[row * cell_height :, column * cell_width :][:cell_height, :cell_width]
            if frame_first and column == 0:
                cell[1:-1, 1:-1] = _RED
            cell[_GAP:-_GAP, _GAP:-_GAP] = images[row, column]
    return canvas


def near_square(images: UInt8[np.ndarray, "image height width channel"]) -> np.ndarray:
    """Arranges images in a nearly square grid (rows, columns, ...), filled up with white ones."""
    columns = int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    white = np.full((rows * columns - len(images), *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, white]).reshape(rows, columns, *images.shape[1:])
