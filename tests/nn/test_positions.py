"""Positional encodings: rotary-embedding-torch, MAE's formula, and other resolutions."""

import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.nn import positions
from darl_jax.nn.blocks import REMAT_POLICIES

GOLDEN = np.load(pathlib.Path(__file__).resolve().parents[1] / "golden" / "rope2d.npz")


def as_sequence(x: np.ndarray) -> jax.Array:
    """(batch, head, rows, columns, channel) as (batch, token, head, channel) behind a token 0.

    The golden file has the paper's adjacent pairs, which become halves.
    """
    flat = np.moveaxis(x.reshape(*x.shape[:2], -1, x.shape[-1]), 1, 2)
    flat = flat[..., positions.halves_from_pairs(x.shape[-1])]
    start = np.random.default_rng(0).normal(size=(flat.shape[0], 1, *flat.shape[2:]))
    return jnp.asarray(np.concatenate([start, flat], axis=1), jnp.float32)


@pytest.mark.parametrize("y_first", [False, True])
def test_rope_2d_equals_rotary_embedding_torch(y_first: bool) -> None:
    angles = positions.rope_angles("rope2d", (5, 7), (5, 7), 16, y_first=y_first)
    query = as_sequence(GOLDEN["q2d"])
    got = positions.rotate(query, angles)
    expected = as_sequence(GOLDEN["q2d_y_first" if y_first else "q2d_x_first"])
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:], atol=1e-5)
    np.testing.assert_array_equal(got[:, 0], query[:, 0], err_msg="the start token turned")


def test_rope_1d_equals_rotary_embedding_torch() -> None:
    angles = positions.rope_angles("rope1d", (2, 5), (2, 5), 16)
    query, expected = (
        np.swapaxes(GOLDEN[name], 1, 2)[..., positions.halves_from_pairs(16)]
        for name in ("q1d", "q1d_rotated")
    )
    got = positions.rotate(jnp.asarray(query), angles)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_rope_keeps_the_type_of_what_it_turns_and_computes_in_float32() -> None:
    angles = positions.rope_angles("rope2d", (5, 7), (5, 7), 16)
    query = as_sequence(GOLDEN["q2d"]).astype(jnp.bfloat16)
    got = positions.rotate(query, angles)
    assert got.dtype == jnp.bfloat16
    exact = positions.rotate(query.astype(jnp.float32), angles)
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


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


def test_rope_angles_of_far_patches_are_exact_to_float32() -> None:
    """H/14 at 1022 px: 73 patches on a side; angles are rounded once, from float64."""
    angles = positions.rope_angles("rope2d", (73, 73), (73, 73), 80)
    i = np.arange(20)
    exact = 72 * 10_000.0 ** (-2 * i / 40)
    np.testing.assert_allclose(angles[-1], np.tile(exact, 2), rtol=6e-8)


@pytest.mark.parametrize("kind", ["rope1d", "rope2d"])
def test_rope_logits_depend_on_the_difference_of_coordinates_alone(kind: str) -> None:
    rng = np.random.default_rng(3)
    query, key = (rng.normal(size=16).astype(np.float32) for _ in range(2))
    rows, columns = 4, 5
    angles = positions.rope_angles(kind, (rows, columns), (rows, columns), 16)

    def turned(x: np.ndarray) -> np.ndarray:
        repeated = np.broadcast_to(x, (1, rows * columns + 1, 1, 16))
        return np.asarray(positions.rotate(jnp.asarray(repeated), angles))[0, 1:, 0]

    logits = turned(query) @ turned(key).T
    by_difference: dict[tuple[int, int], list[float]] = {}
    for i, j in itertools.product(range(rows * columns), repeat=2):
        difference = (
            (i - j, 0)
            if kind == "rope1d"
            else (i // columns - j // columns, i % columns - j % columns)
        )
        by_difference.setdefault(difference, []).append(float(logits[i, j]))
    assert max(np.ptp(values) for values in by_difference.values()) < 1e-4
    means = sorted(np.mean(values) for values in by_difference.values())
    assert np.min(np.diff(means)) > 1e-4, "two differences are not told apart"


@pytest.mark.parametrize(
    ("kind", "head_dim"), [("rope2d", 6), ("rope2d", 7), ("rope1d", 5), ("sincos2d", 8)]
)
def test_rope_refuses_heads_that_it_cannot_pair_and_names_it_does_not_know(
    kind: str, head_dim: int
) -> None:
    with pytest.raises(ValueError, match="multiple of" if kind != "sincos2d" else "no rotary"):
        positions.rope_angles(kind, (2, 2), (2, 2), head_dim)


def test_coordinates_are_x_then_y_scaled_onto_the_trained_grid() -> None:
    coordinates = positions.grid_coordinates((24, 24), (14, 14)).reshape(24, 24, 2)
    np.testing.assert_allclose(coordinates[5, 23], [23 * 14 / 24, 5 * 14 / 24])
    uneven = positions.grid_coordinates((4, 9), (2, 3)).reshape(4, 9, 2)
    np.testing.assert_allclose(uneven[3, 8], [8 / 3, 1.5])


def test_every_second_patch_of_a_doubled_grid_stands_where_the_trained_ones_stand() -> None:
    def second(x: np.ndarray) -> np.ndarray:
        return x.reshape(6, 8, -1)[::2, ::2].reshape(12, -1)

    fine = positions.rope_angles("rope2d", (6, 8), (3, 4), 16)
    trained = positions.rope_angles("rope2d", (3, 4), (3, 4), 16)
    np.testing.assert_array_equal(second(fine[1:]), trained[1:])
    np.testing.assert_array_equal(
        second(positions.sincos_2d((6, 8), (3, 4), 32)), positions.sincos_2d((3, 4), (3, 4), 32)
    )


def test_rope_1d_at_another_resolution_spans_the_trained_places() -> None:
    fine = positions.rope_angles("rope1d", (6, 8), (3, 4), 16)
    trained = positions.rope_angles("rope1d", (3, 4), (3, 4), 16)
    np.testing.assert_allclose(fine[4::4], trained[1:], rtol=1e-6)


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


def test_sincos_refuses_a_width_that_is_no_multiple_of_4() -> None:
    with pytest.raises(ValueError, match="multiple of 4, not 10"):
        positions.sincos_2d((2, 2), (2, 2), 10)


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
