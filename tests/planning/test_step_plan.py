import jax
import jax.numpy as jnp
import pytest

from darl_jax.planning.matmul_flops import matmul_flops
from darl_jax.planning.memory import DoesNotFitError, advice_on_refusal
from darl_jax.planning.step_plan import memory_traffic

LAYERS, ROWS, WIDTH = 6, 2048, 64
FLOPS = 2.0 * LAYERS * ROWS * WIDTH**2


def stack(x: jax.Array, weights: jax.Array, unroll: int) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, unroll=unroll)[0]


X, WEIGHTS = jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH))


@pytest.mark.parametrize("unroll", [1, 2, LAYERS])
def test_flops_of_a_scan_are_those_of_all_its_trips(unroll: int) -> None:
    assert matmul_flops(lambda x, w: stack(x, w, unroll), X, WEIGHTS) == FLOPS
    loop = jax.jit(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ y, x))
    with pytest.raises(ValueError, match="while loop"):
        matmul_flops(loop, jnp.ones((8, 8)))


def test_recomputed_products_are_counted_and_unused_ones_are_not() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        x = jax.checkpoint(lambda x, w: jnp.tanh(jnp.tanh(x @ w) @ w))(x, w)
        return jnp.sum(x)

    w = jnp.ones((WIDTH, WIDTH))
    product = 2 * ROWS * WIDTH**2
    # Two forward, both again, and backward two for the weights and one for the inner input.
    assert matmul_flops(jax.value_and_grad(loss), w, X) == (2 + 2 + 3) * product
    assert matmul_flops(lambda w, x: (x @ w, x @ w)[0], w, X) == product


def test_memory_traffic_of_a_loop_is_that_of_its_trips() -> None:
    """Bounds of a loop contain the bytes of the same function without a loop."""
    lower = jax.jit(stack, static_argnums=2).lower
    loop, unrolled = (lower(X, WEIGHTS, unroll).compile() for unroll in (1, LAYERS))
    least, uncached = memory_traffic(loop, FLOPS, accumulation_steps=1)
    exact = unrolled.cost_analysis()["bytes accessed"]
    assert least <= exact
    assert uncached == pytest.approx(exact, rel=0.1)
    assert loop.cost_analysis()["bytes accessed"] < 0.5 * exact  # its body once
    memory = loop.memory_analysis()
    state = 4 * (2 * ROWS * WIDTH + LAYERS * WIDTH**2)
    assert least == state + 2 * memory.temp_size_in_bytes
    assert memory_traffic(loop, FLOPS, 3)[0] == state + 6 * memory.temp_size_in_bytes


def test_only_a_refusal_for_memory_is_advice() -> None:
    used = "Ran out of memory in memory space hbm. Used 940.50M of 512.00M hbm"
    advice = rf"{used}\. Raise config\.mesh\.fsdp"
    with pytest.raises(DoesNotFitError, match=advice), advice_on_refusal():
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {used}.\n\nTotal usage >= 1.2G:")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), advice_on_refusal():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")
