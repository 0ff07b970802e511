"""Multiplications of a jaxpr, where XLA's cost analysis counts a scan's body once."""

import jax
import jax.numpy as jnp
import pytest

from darl_jax.planning.matmul_flops import matmul_flops


def test_the_counter_agrees_with_xlas_cost_analysis_without_loops() -> None:
    def chain(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        y = jnp.einsum("btd,dhk->bhtk", x, a)
        return jnp.einsum("bhtk,bhsk->bhts", y, y) @ jnp.broadcast_to(b, (2, 3, *b.shape))

    args = (jnp.ones((2, 5, 8)), jnp.ones((8, 3, 4)), jnp.ones((5, 6)))
    cost = jax.jit(chain).lower(*args).compile().cost_analysis()
    assert cost is not None
    assert matmul_flops(chain, *args) == cost["flops"]
    assert cost["flops"] == 2 * (2 * 5 * 8 * 12 + 6 * 5 * 5 * 4 + 6 * 5 * 5 * 6)


def test_the_counter_multiplies_scans_drops_dead_code_and_counts_recomputation() -> None:
    w, x, once = jnp.ones((4, 4)), jnp.ones((3, 4)), 2 * 3 * 4 * 4

    def scanned(x: jax.Array) -> jax.Array:
        y, _ = jax.lax.scan(lambda c, _: (jnp.sin(c @ w), c @ w.T), x, length=5)
        return y

    assert matmul_flops(scanned, x) == 5 * once
    assert matmul_flops(jax.jit(scanned), x) == 5 * once
    assert matmul_flops(lambda x: (x @ w, x @ w)[0], x) == once
    assert matmul_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ w, jnp.sin, x), x) == once

    def body(x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    assert matmul_flops(jax.value_and_grad(body), x) == 4 * once
    assert matmul_flops(jax.value_and_grad(jax.checkpoint(body)), x) == 6 * once
    with pytest.raises(ValueError, match="while loop"):
        matmul_flops(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ w, x), x)
