"""The Transformer block with RoPE and its GELU against PyTorch and SciPy."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from scipy import special

from darl_jax.nn import positions
from darl_jax.nn.blocks import Block, gelu
from darl_jax.nn.vit import ViTConfig

GOLDEN = np.load(pathlib.Path(__file__).resolve().parents[1] / "golden" / "block.npz")
CONFIG = ViTConfig(width=32, depth=1, num_heads=2, mlp_dim=64, dtype="float32")


def assert_close(got: Any, expected: Any, name: str = "") -> None:
    """Within 1e-5 of the largest value, which is what float32 sums of 64 products leave."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=name
    )


def test_block_and_its_gradient_equal_pytorch() -> None:
    # The golden block rotates adjacent channel pairs; ours rotates the halves of a head.
    halves = np.concatenate([16 * head + positions.halves_from_pairs(16) for head in range(2)])

    def golden(name: str) -> np.ndarray:
        array = GOLDEN[name]
        return array[..., halves] if "/query/" in name or "/key/" in name else array

    flat = {
        name.removeprefix("params/"): jnp.asarray(golden(name))
        for name in GOLDEN.files
        if name.startswith("params/")
    }
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Block(CONFIG, rngs=nnx.Rngs(0))))
    assert set(traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/")) == set(flat)
    angles = positions.rope_angles("rope2d", (3, 4), (3, 4), 16)

    @jax.jit
    def run(params: Any, x: jax.Array) -> tuple[Any, Any]:
        def apply(params: Any, x: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, params)(x, mask="causal", angles=angles)

        out, vjp = jax.vjp(apply, params, x)
        return out, vjp(jnp.asarray(GOLDEN["cotangent"]))

    params = traverse_util.unflatten_dict(flat, sep="/")
    out, (gradients, by_input) = run(params, jnp.asarray(GOLDEN["input"]))
    assert_close(out, GOLDEN["output"])
    assert_close(by_input, GOLDEN["gradients/input"], "input")
    for name, gradient in traverse_util.flatten_dict(gradients, sep="/").items():
        assert_close(gradient, golden(f"gradients/{name}"), name)


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * special.erfc(-x / np.sqrt(2))


def exact_gelu_slope(x: np.ndarray) -> np.ndarray:
    return 0.5 * special.erfc(-x / np.sqrt(2)) + x * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("bfloat16", 2**-8)])
def test_gelu_and_its_slope_are_the_exact_ones_rounded_also_in_the_tail(dtype, rtol) -> None:
    """1 + erf of a bfloat16 argument in bfloat16 would be wrong by 2^-8 x: here it is 1e-6."""
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -50.0, 50.0, -1e4, 1e4]])
    x = jnp.asarray(x, dtype)
    exact = np.asarray(x, np.float64)
    got, slope = jax.jit(jax.vmap(jax.value_and_grad(gelu)))(x)
    assert got.dtype == slope.dtype == x.dtype
    got, slope = np.asarray(got, np.float64), np.asarray(slope, np.float64)
    np.testing.assert_allclose(got, exact_gelu(exact), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(slope, exact_gelu_slope(exact), rtol=rtol, atol=1e-6)
