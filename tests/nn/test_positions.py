"""Positional encodings: the paper's and MAE's formulas, and other resolutions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.nn import positions
from darl_jax.nn.blocks import REMAT_POLICIES


@pytest.mark.parametrize(
    ("kind", "y_first"), [("rope1d", False), ("rope2d", False), ("rope2d", True)]
)
def test_rope_angles_are_the_papers_formula_on_the_trained_grid(kind: str, y_first: bool) -> None:
    """As many patches as in H/14 at 1022 px are rounded once, from float64."""
    grid, trained, channels = (10, 73), (5, 292), 16
    angles = positions.rope_angles(kind, grid, trained, channels, y_first=y_first)
    assert not angles[0].any(), "the start token turned"
    for place, (row, column) in enumerate(np.ndindex(grid), 1):
        x, y = 4 * column, row / 2
        axes = [2 * place] if kind == "rope1d" else [y, x] if y_first else [x, y]
        of_axis = channels // len(axes)
        frequencies = 10_000.0 ** (-2 * np.arange(of_axis // 2) / of_axis)
        expected = np.concatenate([coordinate * frequencies for coordinate in axes])
        np.testing.assert_allclose(angles[place], expected, rtol=6e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rope_is_the_pairwise_formula_and_its_gradient_turns_back(dtype: jnp.dtype) -> None:
    angles = positions.rope_angles("rope2d", (5, 7), (5, 7), 16)
    shape = (2, 36, 3, 16)
    x, cotangent = (jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(2))

    def as_pairs(x: jax.Array | np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32).reshape(*shape[:-1], 2, 8)

    def pairwise(x: jax.Array, angles: np.ndarray) -> np.ndarray:
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = np.moveaxis(as_pairs(x), -2, 0)
        rotated = [first * cos - second * sin, first * sin + second * cos]
        return np.stack(rotated, axis=-2).reshape(shape).astype(dtype)

    # Not compiled: a compiler may join a product and a sum into one rounding.
    got, transpose = jax.vjp(lambda x: positions.rotate(x, angles), x)
    np.testing.assert_array_equal(got, pairwise(x, angles))
    back, exact = transpose(cotangent)[0], pairwise(cotangent.astype(jnp.float32), -angles)
    # Both products and their sum are rounded, each by half a unit in the last place at most.
    unit = float(jnp.finfo(dtype).eps) * np.hypot(*np.moveaxis(as_pairs(cotangent), -2, 0))
    assert np.all(np.abs(as_pairs(back) - as_pairs(exact)) <= 1.5 * unit[..., None, :])


def test_remat_dots_keeps_nothing_of_rope() -> None:
    angles = positions.rope_angles("rope2d", (5, 7), (5, 7), 16)
    policy = REMAT_POLICIES["dots"]

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(positions.rotate(x, angles)))

    x = jnp.ones((2, 36, 3, 16))
    _, pullback = jax.vjp(jax.checkpoint(loss, policy=policy), x)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size >= x.size]
    assert len(kept) == 1, "more than the input is kept for the backward pass"


def test_sincos_equals_the_formula_of_mae() -> None:
    """facebookresearch/mae, util/pos_embed.py: w goes first, each half is [sin, cos]."""
    got = positions.sincos_2d((3, 5), (3, 5), 24)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (column, row):
                omegas = [1.0 / 10000 ** (k / (24 / 4)) for k in range(24 // 4)]
                expected += [math.sin(place * omega) for omega in omegas]
                expected += [math.cos(place * omega) for omega in omegas]
            np.testing.assert_allclose(got[row * 5 + column], expected, atol=1e-6)


def test_learned_positions_of_the_trained_grid_are_taken_as_they_are() -> None:
    table = jax.random.normal(jax.random.key(0), (12, 6))
    np.testing.assert_array_equal(positions.resample_positions(table, (3, 4), (3, 4)), table)


def test_resampling_learned_positions_keeps_a_ramp() -> None:
    """A bicubic kernel reproduces lines, on patches' centers, away from the edges."""
    y, x = np.meshgrid(np.arange(10.0), np.arange(12.0), indexing="ij")
    table = np.stack([x, y, 0.5 * x - 2 * y + 1], axis=-1).reshape(120, 3)
    got = positions.resample_positions(jnp.asarray(table, jnp.float32), (10, 12), (20, 18))
    fine_y, fine_x = np.meshgrid(
        (np.arange(20) + 0.5) * 10 / 20 - 0.5, (np.arange(18) + 0.5) * 12 / 18 - 0.5, indexing="ij"
    )
    expected = np.stack([fine_x, fine_y, 0.5 * fine_x - 2 * fine_y + 1], axis=-1)
    np.testing.assert_allclose(got.reshape(20, 18, 3)[4:-4, 3:-3], expected[4:-4, 3:-3], atol=1e-4)
