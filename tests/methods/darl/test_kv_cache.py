"""One token at a time with keys and values kept equals the whole sequence at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods.darl.kv_cache import SequenceDecoder
from darl_jax.methods.darl.model import DARL
from darl_jax.nn import orders
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.vit import ViTConfig
from tests.random_modules import random_darl

GRID = (2, 4)
BATCH, PATCHES, PIXELS = 3, 8, 12


def model(positions: str, order: str, *, two_stream: bool = False, dtype: str = "float32") -> DARL:
    vit = ViTConfig(
        width=16, depth=3, num_heads=2, mlp_dim=32, patch_size=2, dtype=dtype,
        positions=positions, order=OrderConfig(order),
    )  # fmt: skip
    return random_darl(vit, grid=GRID, two_stream=two_stream)


def decoded(model: DARL, patches: jax.Array, order: orders.Order) -> jax.Array:
    """z for each place of the sequence, from a cache that begins empty."""
    in_sequence = orders.take(patches, order)
    decoder = SequenceDecoder(model, GRID, order)

    def step(state, place):
        cache, previous = state
        cache, z = decoder(cache, place, previous)
        return (cache, in_sequence[:, place]), z

    # What stands before the first patch must not matter.
    start = decoder.empty_cache(BATCH), jnp.full((BATCH, PIXELS), 7.0)
    _, z = jax.lax.scan(step, start, jnp.arange(PATCHES))
    return z.swapaxes(0, 1)


@pytest.mark.parametrize(
    ("positions", "order", "two_stream"),
    [
        ("rope2d", "raster", False),
        ("rope1d", "round_robin", False),
        ("learnable", "spiral", False),
        ("sincos2d", "nested_raster", True),
        ("rope2d", "random", True),
    ],
)
def test_cached_and_uncached_backbones_agree_at_every_position(positions, order, two_stream):
    darl = model(positions, order, two_stream=two_stream)
    patches = jax.random.normal(jax.random.key(1), (BATCH, PATCHES, PIXELS))
    drawn = darl.draw_order(jax.random.key(2), BATCH, GRID)

    @jax.jit
    def both(patches):
        whole = orders.take(darl.encode(patches, GRID, drawn), drawn)
        return decoded(darl, patches, drawn), whole

    got, whole = both(patches)
    np.testing.assert_allclose(got, whole, rtol=0, atol=1e-5)


def test_cache_is_of_the_compute_type():
    darl = model("rope2d", "raster", dtype="bfloat16")
    decoder = SequenceDecoder(darl, GRID, np.arange(PATCHES))
    cache, z = jax.eval_shape(
        lambda: decoder(decoder.empty_cache(2), jnp.asarray(0), jnp.zeros((2, PIXELS)))
    )
    assert cache.keys.dtype == cache.values.dtype == z.dtype == jnp.bfloat16
    assert cache.keys.shape == (3, 2, PATCHES, 2, 8)
