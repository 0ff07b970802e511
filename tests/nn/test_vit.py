"""The backbone: what it may look at, how it is computed, how it starts."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from darl_jax.nn import positions
from darl_jax.nn.blocks import Attention, unstack_blocks
from darl_jax.nn.vit import ViT, ViTConfig
from darl_jax.training.state import parameters
from tests.float64 import layer_norm
from tests.random_modules import random_darl, random_module

CONFIG = ViTConfig(width=32, depth=2, num_heads=2, mlp_dim=64, patch_size=2, dtype="float32")
GRID = (3, 4)
PATCH_DIM = 12


def make_vit(**changes: Any) -> ViT:
    config = dataclasses.replace(CONFIG, **changes)
    return random_module(lambda rngs: ViT(config, patch_dim=PATCH_DIM, grid=GRID, rngs=rngs))


def make_patches(batch: int, number: int, seed: int = 0) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(batch, number, PATCH_DIM)), jnp.float32)


# What output at a place may depend on.


@pytest.mark.parametrize("encoding", positions.POSITIONS)
def test_output_at_t_ignores_patch_t_and_those_after_it_and_sees_all_before(encoding: str) -> None:
    model = random_darl(dataclasses.replace(CONFIG, positions=encoding), grid=GRID)
    encode = jax.jit(model.encode)
    patches = make_patches(1, 12)
    base = np.asarray(encode(patches))[0]
    assert base.shape == (12, 32)
    for t in range(12):
        all_after = patches.at[:, t:].set(make_patches(1, 12 - t, seed=1) * 100)
        np.testing.assert_array_equal(encode(all_after)[0, : t + 1], base[: t + 1])
        one = np.asarray(encode(patches.at[:, t].add(1.0)))[0]
        np.testing.assert_array_equal(one[: t + 1], base[: t + 1])
        moved = np.abs(one - base).max(axis=-1) > 1e-5
        assert moved[t + 1 :].all(), f"patch {t} is not seen by all outputs after it"


@pytest.mark.parametrize("encoding", positions.POSITIONS)
def test_with_full_attention_outputs_move_with_every_patch_and_know_positions(
    encoding: str,
) -> None:
    """With no positions, exchanging patches exchanges outputs; an encoding tells them apart."""
    vit = make_vit(positions=encoding)
    forward = jax.jit(lambda patches: vit(patches, mask="full").tokens)
    patches = make_patches(1, 12)
    base = forward(patches)
    for t in range(12):
        moved = np.abs(forward(patches.at[:, t].add(1.0)) - base).max(axis=-1)
        assert (moved > 1e-5).all()
    order = np.random.default_rng(2).permutation(12)
    difference = np.abs(forward(patches[:, order])[:, 1:] - base[:, 1:][:, order]).max()
    assert difference < 1e-5 if encoding == "none" else difference > 1e-3


def test_a_prefix_mask_is_causal_at_1_and_full_at_all_tokens() -> None:
    vit = make_vit()
    forward = jax.jit(lambda patches, mask: vit(patches, mask=mask).tokens)
    patches = jnp.repeat(make_patches(1, 12), 3, axis=0)
    prefix = forward(patches, jnp.array([1, 6, 13]))
    causal, full = (
        jax.jit(lambda patches, mask=mask: vit(patches, mask=mask).tokens)(patches)
        for mask in ("causal", "full")
    )
    np.testing.assert_allclose(prefix[0], causal[0], atol=1e-5)
    np.testing.assert_allclose(prefix[2], full[2], atol=1e-5)
    # With a prefix of 6 tokens, the start and 5 patches: token 0 moves with patch 4, not with 5.
    for patch, moves in ((4, True), (5, False)):
        changed = forward(patches.at[:, patch].add(1.0), jnp.array([1, 6, 13]))
        assert (np.abs(changed[1, 0] - prefix[1, 0]).max() > 1e-5) == moves


def test_tokens_of_a_doubled_grid_start_where_the_trained_ones_do() -> None:
    vit = make_vit(positions="sincos2d")

    def embedded(patches: jax.Array, grid: positions.Grid) -> jax.Array:
        return vit.sequence(patches, grid, vit.order(grid))[0][:, 1:]

    fine = make_patches(1, 48)
    coarse = fine.reshape(1, 6, 8, PATCH_DIM)[:, ::2, ::2].reshape(1, 12, PATCH_DIM)
    got = embedded(fine, (6, 8)).reshape(1, 6, 8, 32)[:, ::2, ::2].reshape(1, 12, 32)
    np.testing.assert_allclose(got, embedded(coarse, GRID), atol=1e-6)


@pytest.mark.parametrize("encoding", positions.POSITIONS)
def test_a_model_runs_at_another_resolution_and_refuses_images_that_are_not_whole(
    encoding: str,
) -> None:
    vit = make_vit(positions=encoding)
    features = jax.eval_shape(lambda patches: vit(patches, grid=(6, 8)), make_patches(1, 48))
    assert features.tokens.shape == (1, 49, 32)
    for number in (11, 48):
        with pytest.raises(ValueError, match=rf"{number} patches do not fill the grid of \(3, 4\)"):
            vit(make_patches(1, number))


# How it is computed.


def test_a_scan_over_stacked_blocks_equals_the_blocks_one_by_one() -> None:
    vit = make_vit(depth=3)
    patches = make_patches(2, 12)
    features = jax.jit(lambda patches: vit(patches))(patches)
    assert features.blocks.shape == (3, 2, 13, 32)
    angles = positions.rope_angles("rope2d", GRID, GRID, 16)
    apply = jax.jit(lambda block, x: block(x, mask="causal", angles=angles))
    x = jnp.concatenate(
        [jnp.broadcast_to(vit.sos[...], (2, 1, 32)), vit.patch_embedding(patches)], axis=1
    )
    for i, block in enumerate(unstack_blocks(vit.blocks, 3)):
        x = apply(block, x)
        np.testing.assert_allclose(features.blocks[i], x, atol=2e-5)


def test_the_last_block_after_the_final_norm_is_the_output() -> None:
    vit = make_vit()
    features = jax.jit(lambda patches: vit(patches))(make_patches(2, 12))
    expected = layer_norm(parameters(vit)["final_norm"], features.blocks[-1])
    np.testing.assert_allclose(features.tokens, expected, atol=1e-5)


@functools.cache
def loss_and_gradient(remat: str, unroll: int) -> Any:
    """(params, patches) -> (loss, gradient), compiled, for a way to compute."""
    vit = make_vit(depth=4, remat=remat, unroll=unroll)
    graphdef = nnx.split(vit)[0]

    def loss(params: Any, patches: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(patches).tokens))

    run = jax.jit(jax.value_and_grad(loss))
    return run.lower(parameters(vit), make_patches(16, 12)).compile()


@pytest.mark.parametrize(("remat", "unroll"), [("none", 2), ("dots", 1), ("full", 1)])
def test_remat_and_unroll_change_neither_output_nor_gradient(remat: str, unroll: int) -> None:
    """But for the order in which float32 sums are taken."""
    arguments = parameters(make_vit(depth=4)), make_patches(16, 12)
    plain, plain_gradient = loss_and_gradient("none", 1)(*arguments)
    loss, gradient = loss_and_gradient(remat, unroll)(*arguments)
    np.testing.assert_allclose(loss, plain, rtol=1e-5, atol=1e-4)
    for got, expected in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * scale)


def test_remat_saves_memory_in_the_order_none_dots_full() -> None:
    none, dots, full = (
        loss_and_gradient(remat, 1).memory_analysis().temp_size_in_bytes
        for remat in ("none", "dots", "full")
    )
    assert full < 0.7 * dots < 0.7 * 0.9 * none


def test_bfloat16_forward_is_near_float32_and_keeps_float32_parameters() -> None:
    """Unit-variance outputs, 2^-9 rounding at each of some ten places: 0.03 on the worst of 768."""
    vit = make_vit()
    graphdef = nnx.split(make_vit(dtype="bfloat16"))[0]
    half = nnx.merge(graphdef, parameters(vit))
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters(half))} == {jnp.dtype("float32")}
    patches = make_patches(2, 12)
    features = jax.jit(lambda patches: half(patches))(patches)
    assert features.tokens.dtype == features.blocks.dtype == jnp.bfloat16
    exact = jax.jit(lambda patches: vit(patches).tokens)(patches)
    difference = np.asarray(features.tokens, np.float64) - np.asarray(exact)
    assert np.abs(difference).max() < 0.08
    assert np.sqrt((difference**2).mean()) < 0.015


# How it starts.


@pytest.fixture(scope="module")
def wide() -> dict[str, np.ndarray]:
    """All initial parameters of a backbone of width 128 by path."""
    config = dataclasses.replace(
        CONFIG, width=128, depth=3, mlp_dim=512, num_heads=4, positions="learnable"
    )
    vit = ViT(config, patch_dim=192, grid=(16, 16), rngs=nnx.Rngs(0))
    flat = traverse_util.flatten_dict(parameters(vit), sep="/")
    return {name: np.asarray(value, np.float64) for name, value in flat.items()}


def test_projections_start_xavier_uniform_by_their_own_fans(wide: dict[str, np.ndarray]) -> None:
    kernels = {name: w for name, w in wide.items() if name.endswith("kernel")}
    assert len(kernels) == 7
    for name, w in kernels.items():
        bound = math.sqrt(6 / sum(w.shape[-2:]))
        for layer in w.reshape(-1, *w.shape[-2:]):
            assert 0.999 * bound < np.abs(layer).max() <= bound * (1 + 1e-6), name
            # The variance of n uniform values varies by sqrt(0.8 / n): 0.7% at n = 128^2.
            assert np.var(layer) == pytest.approx(bound**2 / 3, rel=0.04), name


def test_the_fused_bound_is_that_of_one_d_by_3d_matrix_for_query_key_and_value_alone() -> None:
    config = dataclasses.replace(CONFIG, width=128, num_heads=4, fused_qkv_init=True)
    attention = parameters(Attention(config, rngs=nnx.Rngs(0)))
    for name, features in (("query", 512), ("key", 512), ("value", 512), ("out", 256)):
        bound = math.sqrt(6 / features)
        largest = float(jnp.abs(attention[name]["kernel"]).max())
        assert largest == pytest.approx(bound, rel=1e-3), name


def test_normal_kernels_start_with_deviation_002_and_are_not_cut_at_two_of_them() -> None:
    config = dataclasses.replace(CONFIG, width=64, initialization="normal")
    vit = ViT(config, patch_dim=192, grid=(16, 16), rngs=nnx.Rngs(0))
    flat = traverse_util.flatten_dict(parameters(vit), sep="/")
    kernels = {name: np.asarray(w) for name, w in flat.items() if name.endswith("kernel")}
    assert len(kernels) == 7
    for name, w in kernels.items():
        assert w.std() == pytest.approx(0.02, rel=0.03), name  # of 8192 values or more
        assert np.abs(w).max() > 0.06, name
    assert not any(np.any(w) for name, w in flat.items() if name.endswith("bias"))


def test_biases_start_at_0_scales_at_1_and_tokens_at_deviation_002(
    wide: dict[str, np.ndarray],
) -> None:
    for name, value in wide.items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif name.endswith("scale"):
            assert (value == 1).all(), name
    assert wide["positions"].std() == pytest.approx(0.02, rel=0.02)  # of 32768 values
    assert wide["positions"].mean() == pytest.approx(0.0, abs=5e-4)
    assert wide["sos"].std() == pytest.approx(0.02, rel=0.3)  # of 128 values
    assert 0.03 < np.abs(wide["sos"]).max() < 0.1


def test_no_two_projections_start_alike(wide: dict[str, np.ndarray]) -> None:
    kernels = [
        layer.ravel()[:1000]
        for name, w in wide.items()
        if name.endswith("kernel")
        for layer in w.reshape(-1, *w.shape[-2:])
    ]
    correlation = np.corrcoef(kernels) - np.eye(len(kernels))
    assert np.abs(correlation).max() < 0.2  # chance gives sqrt(1/1000) = 0.03
