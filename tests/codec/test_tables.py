"""Integer tables: exact, near the model's probabilities, and safe against another machine."""

import hashlib

import numpy as np
import pytest

from darl_jax.codec import tables


def relevant(n: int, alternatives: int, leaves: int = 1, spread: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(alternatives + leaves)
    return rng.normal(0, spread, (n, alternatives, leaves))


def test_the_weights_are_those_of_version_1():
    table = tables.weight_table()
    assert table[[0, 1, 63]].tolist() == [1 << 30, 1062175491, 542717053]
    exact = 2.0 ** (30 - np.arange(64) / 64)
    assert np.abs(table - exact).max() <= 0.5000001
    digest = hashlib.sha256(table.astype("<i8").tobytes()).hexdigest()
    assert digest == "490446b919f3725e829813808be800830251cfea017b903be0a39e27d66aaba0"


@pytest.mark.parametrize(("alternatives", "leaves"), [(2, 1), (4, 64), (17, 1), (256, 1), (511, 1)])
def test_tables_follow_the_softmax_within_1e_4_bits(alternatives, leaves):
    logits = relevant(300, alternatives, leaves)
    shares = tables.frequencies(logits, 77)
    assert (shares.sum(axis=1) == tables.TOTAL - alternatives).all()
    assert (shares >= 0).all() and (shares == np.rint(shares)).all()
    mass = np.exp(logits - logits.max(axis=(1, 2), keepdims=True)).sum(axis=2)
    p = mass / mass.sum(axis=1, keepdims=True)
    q = (shares + 1) / tables.TOTAL
    assert (p * np.log2(p / q)).sum(axis=1).mean() < 1e-4


def test_tables_are_the_same_with_noise_of_another_machine_under_a_safe_dither():
    logits = relevant(2000, 17)
    noise = np.random.default_rng(0).uniform(-1, 1, logits.shape) * 4e-12
    dither = int(np.argmin(tables.unsafe_dithers(logits, tables.GUARDS[0])))
    np.testing.assert_array_equal(
        tables.frequencies(logits, dither), tables.frequencies(logits + noise, dither)
    )


@pytest.mark.parametrize("dither", [0, 3, 255])
def test_a_logit_within_half_the_guard_of_a_boundary_is_moved_by_another_dither(dither):
    guard = tables.GUARDS[0]
    logits = relevant(3, 5, spread=1.0)
    for side in (-1, 1):
        planted = logits.copy()
        top = planted[1].max()
        low = int(planted[1].argmin())
        planted[1, low] = top - ((40.5 - dither / 256) / tables.SCALE + side * guard / 2)
        unsafe = tables.unsafe_dithers(planted, guard)
        assert unsafe[dither]
        # By the definition, one dither after another.
        z = (planted.max(axis=(1, 2), keepdims=True) - planted) * tables.SCALE
        z = z[..., None] + np.arange(256) / 256
        near = np.abs(z - np.floor(z) - 0.5) < tables.SCALE * guard
        np.testing.assert_array_equal(unsafe, near.any(axis=(0, 1, 2)))
        moved = planted.copy()
        moved[1, low] += side * guard  # over the boundary
        other = int(np.argmin(unsafe))
        same = [
            np.array_equal(tables.frequencies(planted, u), tables.frequencies(moved, u))
            for u in (dither, other)
        ]
        assert same == [False, True]


def test_absent_and_improbable_alternatives_keep_one_part_in_2_to_the_24():
    logits = np.array([[[0.0], [-np.inf], [-1e6], [np.log(0.5)]]])
    shares = tables.frequencies(logits, 0)
    assert shares[0, 1] == shares[0, 2] == 0
    bits = tables.table_bits(np.repeat(shares, 2, axis=0), np.array([1, 0]))
    assert bits[0] == 24
    assert abs(bits[1] - np.log2(1.5)) < 1e-5
    assert not tables.unsafe_dithers(logits, tables.GUARDS[0])[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = relevant(3, 4)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match="not finite"):
        tables.check_logits(logits)
