"""Positional encodings, those of Table 1 and others, at the trained and at other resolutions.

A token has the coordinates of its own content, patch p_i at its (x, y) = (column, row), never those
of the patch that it predicts (settled here). The start token precedes the sequence: it is not
rotated, which is the same as the coordinates (0, 0), and has no position but its learned vector.

At another resolution than the trained one, coordinates are scaled back onto the trained grid
(14/24 from 224 to 384 px with patches of 16), and learned positions are resampled bicubically.
Those of 'sincos2d_native' (AIMv2) count the patches of whatever grid there is; those of
'rope_dinov3' run from -1 to 1 over it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.nn.dtypes import at_least_float32

POSITIONS = (
    "none",
    "sincos2d",
    "sincos2d_native",
    "learnable",
    "rope1d",
    "rope2d",
    "rope_dinov3",
)
# Those that encode a patch's position in the image.
ABSOLUTE = tuple(kind for kind in POSITIONS if kind not in ("none", "rope1d"))

Grid = tuple[int, int]  # (rows, columns) of patches


def grid_coordinates(grid: Grid, trained_grid: Grid) -> Float[np.ndarray, "patch 2"]:
    """(x, y) of each patch in raster order, in patches of the trained grid."""
    y, x = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    scale = np.array([trained_grid[1] / grid[1], trained_grid[0] / grid[0]])
    return np.stack([x.ravel(), y.ravel()], axis=-1) * scale


def rope_angles(
    kind: str,
    grid: Grid,
    trained_grid: Grid,
    head_dim: int,
    *,
    max_wavelength: float = 10_000.0,
    y_first: bool = False,
    dtype: type[np.floating] = np.float32,
) -> Float[np.ndarray, "token pair"]:
    """Rotation angles of each token and channel pair of a head, the start token's (0) first.

    Section 3.4 and Appendix D. The paper prints cos(2 pi m theta) in one place and cos(m theta),
    theta up to max_wavelength, in the other; settled here: angle_i = m * max_wavelength^(-2i/d), no
    2 pi, with integer coordinates m, where d is the number of channels of an axis. So does
    rotary-embedding-torch, the library that the paper cites, with axial positions and its language
    frequencies.

    Args:
      kind: 'rope2d' rotates the first half of the pairs by x and the second by y; 'rope1d' rotates
        all of them by the position in the sequence, 1 for the first patch; 'rope_dinov3' is
        DINOv3's, with y first, 2 pi, and the centers of patches on [-1, 1] along each axis.
      grid: of the image.
      trained_grid: of the images that the model was trained on.
      head_dim: channels of a head; a multiple of 4 for 'rope2d' and of 2 for 'rope1d'.
      max_wavelength: base of the frequencies.
      y_first: 'rope2d' with the axes exchanged, the library's natural order.
      dtype: of the result, which is computed in float64.

    Returns:
      Radians: (1 + rows * columns, head_dim / 2).
    """
    if kind == "rope1d":
        patches = math.prod(grid)
        axes = [np.arange(1, patches + 1) * (math.prod(trained_grid) / patches)]
    elif kind == "rope2d":
        x, y = grid_coordinates(grid, trained_grid).T
        axes = [y, x] if y_first else [x, y]
    elif kind == "rope_dinov3":
        centers = (2.0 * np.pi * (2.0 * (np.arange(n) + 0.5) / n - 1.0) for n in grid)
        axes = [axis.ravel() for axis in np.meshgrid(*centers, indexing="ij")]
    else:
        raise ValueError(f"{kind!r} is no rotary encoding")
    channels = head_dim // len(axes)
    if channels * len(axes) != head_dim or channels % 2:
        raise ValueError(
            f"{kind} needs a head_dim that is a multiple of {2 * len(axes)}, not {head_dim}"
        )
    frequencies = max_wavelength ** (-np.arange(0, channels, 2) / channels)
    angles = np.concatenate([np.outer(axis, frequencies) for axis in axes], axis=-1)
    return np.pad(angles, ((1, 0), (0, 0))).astype(dtype)


def random_scale(key: PRNGKeyArray, largest: float) -> Float[Array, ""]:
    """Draws a factor of RoPE's coordinates, log-uniform between 1 / largest and largest.

    As in DINOv3 and NEPA; settled here: one factor for the whole batch.
    """
    bound = math.log(largest)
    return jnp.exp(jax.random.uniform(key, minval=-bound, maxval=bound))


def rotate(
    x: Float[Array, "batch token head channel"],
    angles: Float[np.ndarray, "token pair"] | Float[Array, "*batch token pair"],
) -> Float[Array, "batch token head channel"]:
    """Rotates the channel pairs (x_i, x_{i + d/2}) by their angles, in float32; keeps x's dtype.

    Halves instead of the paper's adjacent pairs (x_2i, x_2i+1): the same rotation on permuted
    channels (`halves_from_pairs`), and one split and one concatenation, which fuse everywhere.
    Angles are in radians, shared by all examples or one set for each.
    """
    xp: Any = np if isinstance(angles, np.ndarray) else jnp
    cos, sin = (f(angles)[..., None, :] for f in (xp.cos, xp.sin))
    first, second = jnp.split(at_least_float32(x), 2, axis=-1)
    rotated = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def halves_from_pairs(head_dim: int) -> Int[np.ndarray, " channel"]:
    """Permutation of a head's channels from adjacent pairs (the paper, timm) to halves.

    `pairs[halves_from_pairs(d)]` has (x_2i, x_2i+1) at (i, i + d/2). Applied to the output channels
    of the query and key projections alike, it leaves every attention logit as it is.
    """
    return np.arange(head_dim).reshape(-1, 2).T.ravel()


def sincos_2d(
    grid: Grid, trained_grid: Grid, width: int, *, dtype: type[np.floating] = np.float32
) -> Float[np.ndarray, "patch width"]:
    """Fixed sine-cosine positions as in MAE: x in the first half of the channels, y in the second.

    Each half holds the sines, then the cosines, of coordinate * 10000^(-i / (width / 4)).
    """
    if width % 4:
        raise ValueError(f"sincos2d needs a width that is a multiple of 4, not {width}")
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    angles = [np.outer(axis, frequencies) for axis in grid_coordinates(grid, trained_grid).T]
    waves = [wave(each) for each in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=-1).astype(dtype)


def resample_positions(
    table: Float[Array, "trained_patch width"], trained_grid: Grid, grid: Grid
) -> Float[Array, "patch width"]:
    """Resamples learned positions of the trained grid bicubically onto another grid."""
    if grid == trained_grid:
        return table
    width = table.shape[-1]
    image = table.reshape(*trained_grid, width)
    return jax.image.resize(image, (*grid, width), method="bicubic").reshape(-1, width)
