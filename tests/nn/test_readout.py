import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.nn.readout import readout

TOKENS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)


def test_mean_is_over_patches_and_excludes_the_start_token():
    expected = TOKENS[:, 1:].astype(np.float64).mean(axis=1)
    np.testing.assert_allclose(readout(jnp.asarray(TOKENS), "mean"), expected, atol=1e-6)
    moved = jnp.asarray(TOKENS).at[:, 0].add(100.0)
    np.testing.assert_array_equal(readout(moved, "mean"), readout(jnp.asarray(TOKENS), "mean"))


def test_last_is_the_last_patch():
    np.testing.assert_array_equal(readout(jnp.asarray(TOKENS), "last"), TOKENS[:, -1])


def test_blocks_are_read_out_together():
    blocks = jnp.stack([TOKENS, 2 * TOKENS])
    np.testing.assert_allclose(readout(blocks, "mean")[1], 2 * readout(blocks, "mean")[0])


def test_half_precision_features_are_averaged_in_float32():
    tokens = jnp.full((1, 1025, 1), 1.01, jnp.bfloat16)
    assert readout(tokens, "mean").dtype == jnp.float32
    np.testing.assert_allclose(readout(tokens, "mean"), np.float32(tokens[0, 0, 0]), rtol=1e-6)


def test_an_unknown_pooling_is_an_error():
    with pytest.raises(ValueError, match=r"pooling='max' is unknown; choose from .*'mean', 'last'"):
        readout(jnp.asarray(TOKENS), "max")
