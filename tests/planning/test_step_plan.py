import jax
import jax.numpy as jnp
import pytest

from darl_jax.planning.memory import DoesNotFitError, advice_on_refusal
from darl_jax.planning.step_plan import memory_traffic

LAYERS, ROWS, WIDTH = 6, 2048, 64
FLOPS = 2.0 * LAYERS * ROWS * WIDTH**2


def stack(x: jax.Array, weights: jax.Array, unroll: int) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights, unroll=unroll)[0]


X, WEIGHTS = jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH))


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
