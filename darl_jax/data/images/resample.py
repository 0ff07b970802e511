"""The crop and bicubic resize of images.py for a whole batch of equal-sized images at once.

The per-image cost of a decoder and a resize call is what limits 32-pixel images. Here each crop and
resize is two small matrix products, one for each axis, and the matrices of all integer boxes of an
axis are made once.
"""

import functools

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8

# Tables of all integer boxes up to this size are kept; larger images make theirs for each batch.
_TABLE_BYTES = 64 * 2**20
_BICUBIC_A = -0.5


def bicubic_matrices(
    start: Float64[np.ndarray, " n"], stop: Float64[np.ndarray, " n"], size: int, out: int
) -> Float32[np.ndarray, "n {out} {size}"]:
    """The rows that resize pixels [start, stop) of an axis of `size` pixels to `out` pixels.

    Keys' cubic kernel (a = -0.5), widened by the scale where the axis shrinks (antialiasing), cut
    at the image's edge and normalized: the weights of Pillow's `Image.resize(BICUBIC, box=...)`.
    """
    scale = ((stop - start) / out)[:, None, None]
    widening = np.maximum(scale, 1.0)
    support = 2.0 * widening
    center = start[:, None, None] + (np.arange(out)[None, :, None] + 0.5) * scale
    pixel = np.arange(size)[None, None, :]
    first = np.maximum(np.floor(center - support + 0.5), 0)
    last = np.minimum(np.floor(center + support + 0.5), size)
    x = np.abs((pixel - center + 0.5) / widening)
    near = ((_BICUBIC_A + 2) * x - (_BICUBIC_A + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * _BICUBIC_A - 4 * _BICUBIC_A
    weight = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weight = np.where((pixel >= first) & (pixel < last), weight, 0.0)
    return (weight / weight.sum(axis=-1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _table(size: int, out: int) -> Float32[np.ndarray, "boxes out size"]:
    """Matrices of all integer boxes, at row start * (size + 1) + stop; None where too large."""
    start, stop = np.divmod(np.arange((size + 1) ** 2), size + 1)
    valid = np.flatnonzero(start < stop)
    table = np.zeros(((size + 1) ** 2, out, size), np.float32)
    table[valid] = bicubic_matrices(
        start[valid].astype(np.float64), stop[valid].astype(np.float64), size, out
    )
    return table


def _axis_matrices(
    start: Int64[np.ndarray, " n"], stop: Int64[np.ndarray, " n"], size: int, out: int
) -> Float32[np.ndarray, "n {out} {size}"]:
    code = start * (size + 1) + stop
    if (size + 1) ** 2 * out * size * 4 <= _TABLE_BYTES:
        return _table(size, out)[code]
    boxes, row = np.unique(code, return_inverse=True)
    first, last = np.divmod(boxes.astype(np.float64), size + 1)
    return bicubic_matrices(first, last, size, out)[row]


def resize_crops(
    images: UInt8[np.ndarray, "n channel height width"],
    boxes: Int64[np.ndarray, "n 4"],
    out: int,
) -> UInt8[np.ndarray, "n channel {out} {out}"]:
    """Each image's box, resized to `out` x `out` as Pillow does it, within a gray level or two.

    Pillow rounds and clips to 8 bits between its horizontal and its vertical pass, which is seen
    where the filter overshoots; so does this. Boxes are (left, top, right, bottom).
    """
    height, width = images.shape[2:]
    if height == width == out and np.array_equal(
        boxes, np.broadcast_to((0, 0, out, out), boxes.shape)
    ):
        return images
    across = _axis_matrices(boxes[:, 0], boxes[:, 2], width, out)
    down = _axis_matrices(boxes[:, 1], boxes[:, 3], height, out)
    return _apply(images, across, down)


def resize_box(
    images: UInt8[np.ndarray, "n channel height width"],
    box: tuple[float, float, float, float],
    out: int,
) -> UInt8[np.ndarray, "n channel {out} {out}"]:
    """One box, the same for all images, fractions of a pixel allowed; otherwise `resize_crops`."""
    height, width = images.shape[2:]
    if height == width == out and np.array_equal(box, (0, 0, out, out)):
        return images
    left, top, right, bottom = np.array(box, np.float64)[:, None]
    across = bicubic_matrices(left, right, width, out)
    down = bicubic_matrices(top, bottom, height, out)
    return _apply(images, across, down)


def _apply(
    images: UInt8[np.ndarray, "n channel height width"],
    across: Float32[np.ndarray, "m out width"],
    down: Float32[np.ndarray, "m out height"],
) -> UInt8[np.ndarray, "n channel out out"]:
    count, channels, height, width = images.shape
    out = across.shape[1]
    flat = images.reshape(count, channels * height, width).astype(np.float32)
    half = np.matmul(flat, across.transpose(0, 2, 1))
    _to_gray_levels(half)
    half = half.reshape(count, channels, height, out)
    result = np.matmul(down[:, None], half)
    _to_gray_levels(result)
    return result.astype(np.uint8)


def _to_gray_levels(values: Float32[np.ndarray, "..."]) -> None:
    # Halves upwards, as Pillow does.
    values += 0.5
    np.floor(values, out=values)
    np.clip(values, 0, 255, out=values)
