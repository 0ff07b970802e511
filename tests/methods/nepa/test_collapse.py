"""Measures of collapse against sums over all pairs, and at both ends of their ranges."""

import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods.nepa.collapse import effective_rank, mean_pairwise_cosine, unit

MASK = jnp.array([True, False, True, True])


def vectors(seed: int = 0) -> np.ndarray:
    """Items of length 1 that lean to one side."""
    x = np.random.default_rng(seed).normal(0.5, 1.0, (4, 5, 6))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_vectors_become_units_and_zero_stays_zero():
    x = np.random.default_rng(0).normal(size=(3, 4)) * np.array([[1e-9], [1.0], [1e9]])
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5)
    assert not unit(jnp.zeros((2, 4))).any()
    assert unit(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.float32


def test_the_mean_cosine_is_that_of_all_pairs_and_batches_merge_by_their_pairs():
    x = vectors()
    broken = np.where(np.asarray(MASK)[:, None, None], x, np.nan)
    found = mean_pairwise_cosine(jnp.asarray(broken, jnp.float32), MASK)
    flat = x[np.asarray(MASK)].reshape(15, 6)
    pairs = [flat[i] @ flat[j] for i in range(15) for j in range(15) if i != j]
    assert float(found.compute()) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert float(found.count) == len(pairs) == 210
    none = mean_pairwise_cosine(jnp.asarray(x, jnp.float32), jnp.zeros(4, bool))
    assert float(found.merge(none).compute()) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_the_effective_rank_is_exp_of_the_entropy_of_the_squared_singular_values():
    x = vectors()
    broken = np.where(np.asarray(MASK)[:, None, None], x, np.nan)
    share = np.linalg.svd(x[np.asarray(MASK)].reshape(15, 6), compute_uv=False) ** 2
    share /= share.sum()
    expected = np.exp(-np.sum(share * np.log(share)))
    found = effective_rank(jnp.asarray(broken, jnp.float32), MASK)
    assert float(found.compute()) == pytest.approx(expected, rel=1e-5)
    assert float(found.count) == 3
    none = effective_rank(jnp.asarray(x, jnp.float32), jnp.zeros(4, bool))
    assert float(found.merge(none).compute()) == pytest.approx(expected, rel=1e-5)


def test_like_items_have_rank_1_and_cosine_1_and_a_basis_has_its_number_and_0():
    mask = jnp.ones(4, bool)
    alike = jnp.broadcast_to(unit(jnp.arange(1.0, 7.0)), (4, 3, 6))
    assert float(mean_pairwise_cosine(alike, mask).compute()) == pytest.approx(1.0, abs=1e-5)
    assert float(effective_rank(alike, mask).compute()) == pytest.approx(1.0, abs=1e-4)
    basis = jnp.eye(12, dtype=jnp.float32).reshape(4, 3, 12)
    assert float(mean_pairwise_cosine(basis, mask).compute()) == pytest.approx(0.0, abs=1e-6)
    assert float(effective_rank(basis, mask).compute()) == pytest.approx(12.0, rel=1e-5)
