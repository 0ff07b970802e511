"""The Transformer block and its GELU against PyTorch, Flax Linen and SciPy."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx, traverse_util
from scipy import special

from darl_jax.nn import positions
from darl_jax.nn.blocks import Block, gelu
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.state import parameters
from tests.random_modules import random_module

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


class LinenBlock(linen.Module):
    """A pre-norm block out of Flax Linen's own modules."""

    @linen.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        y = linen.LayerNorm(epsilon=1e-6, name="norm_attention")(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, mask=mask)
        y = linen.LayerNorm(epsilon=1e-6, name="norm_mlp")(x)
        y = linen.gelu(linen.Dense(64, name="up")(y), approximate=False)
        return x + linen.Dense(32, name="down")(y)


def to_linen(params: dict) -> dict:
    """Our parameters as Linen names and shapes them: heads have a dimension of their own."""
    attention = {
        name: {
            "kernel": params["attention"][name]["kernel"].reshape(32, 2, 16),
            "bias": params["attention"][name]["bias"].reshape(2, 16),
        }
        for name in ("query", "key", "value")
    }
    out = params["attention"]["out"]
    attention["out"] = {"kernel": out["kernel"].reshape(2, 16, 32), "bias": out["bias"]}
    norms = {name: params[name] for name in ("norm_attention", "norm_mlp")}
    return {"attention": attention, **norms, **params["mlp"]}


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_block_and_its_gradient_equal_flax_linen(mask: str) -> None:
    block = random_module(lambda rngs: Block(CONFIG, rngs=rngs))
    graphdef, params = nnx.split(block)[0], parameters(block)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 32)), jnp.float32)

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = nnx.merge(graphdef, params)(x, mask=mask, angles=None)
        return jnp.sum(jnp.sin(out)), out

    def linen_loss(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = linen.make_causal_mask(x[..., 0]) if mask == "causal" else None
        out = LinenBlock().apply({"params": params}, x, seen)
        return jnp.sum(jnp.sin(out)), out

    (ours, by_x), out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    (theirs, by_x_linen), out_linen = jax.jit(jax.grad(linen_loss, (0, 1), has_aux=True))(
        to_linen(params), x
    )
    assert_close(out, out_linen)
    assert_close(by_x, by_x_linen)
    jax.tree.map(assert_close, to_linen(ours), theirs)


def exact_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * special.erfc(-x / np.sqrt(2))


def exact_gelu_slope(x: np.ndarray) -> np.ndarray:
    return 0.5 * special.erfc(-x / np.sqrt(2)) + x * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)


def test_gelu_and_its_slope_are_the_exact_ones() -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -50.0, 50.0, -1e4, 1e4]])
    x = x.astype(np.float32)
    exact, slope = exact_gelu(x.astype(np.float64)), exact_gelu_slope(x.astype(np.float64))
    got = jax.jit(gelu)(jnp.asarray(x))
    got_slope = jax.jit(jax.vmap(jax.grad(gelu)))(jnp.asarray(x))
    np.testing.assert_allclose(got, exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got_slope, slope, rtol=1e-6, atol=1e-6)


def test_gelu_in_bfloat16_is_the_exact_one_rounded_also_in_the_tail() -> None:
    """1 + erf of a bfloat16 argument in bfloat16 would be wrong by 2^-8 x: here it is 1e-6."""
    x = jnp.linspace(-8, 8, 1001).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    got = np.asarray(gelu(x), np.float64)
    slope = np.asarray(jax.vmap(jax.grad(gelu))(x), np.float64)
    assert gelu(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(got, exact_gelu(exact), rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(slope, exact_gelu_slope(exact), rtol=2**-8, atol=1e-6)
