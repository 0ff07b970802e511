"""The classifier: which patches its logits see, how it starts, and what drop path leaves out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.transfer.classifier import Classifier
from darl_jax.nn.blocks import Block, drop_path_scales
from darl_jax.nn.orders import OrderConfig, fixed_order
from darl_jax.nn.vit import ViT, ViTConfig
from tests.random_modules import random_module

VIT = ViTConfig(width=32, depth=3, num_heads=2, mlp_dim=64, patch_size=2, dtype="float32")
GRID = (3, 4)


def make_classifier(**changes) -> Classifier:
    vit = dataclasses.replace(VIT, **changes)
    return random_module(
        lambda rngs: Classifier(vit, num_classes=5, grid=GRID, channels=3, rngs=rngs)
    )


def make_patches(batch: int = 2, seed: int = 0, number: int = 12) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, number, 12)), jnp.float32)


def test_logits_move_with_every_patch() -> None:
    model, patches = make_classifier(), make_patches(1)

    @jax.jit
    def logits(patches: jax.Array) -> jax.Array:
        ways = [(mask, pooling) for mask in ("causal", "full") for pooling in ("last", "mean")]
        return jnp.stack([model(patches, mask=m, pooling=p, grid=GRID) for m, p in ways])

    base = np.asarray(logits(patches))
    assert base.shape == (4, 1, 5)
    assert base.dtype == np.float32
    for t in range(12):
        moved = np.abs(logits(patches.at[:, t].add(1.0)) - base).max(axis=(1, 2))
        assert (moved > 1e-5).all(), f"patch {t}"


def test_a_new_classifier_gives_every_class_the_same_logit() -> None:
    model = Classifier(VIT, num_classes=5, grid=GRID, channels=3, rngs=nnx.Rngs(0))
    logits = model(make_patches(), mask="full", pooling="mean", grid=GRID)
    np.testing.assert_array_equal(logits, np.zeros((2, 5)))


def test_an_image_is_read_in_the_models_order_on_its_own_grid() -> None:
    """Without positions that is raster order of a permuted image, and 'last' is its last patch."""
    spiral = make_classifier(positions="none", order=OrderConfig("spiral"))
    raster = make_classifier(positions="none")  # the same parameters
    patches, grid = make_patches(number=48), (6, 8)
    permuted = patches[:, fixed_order(OrderConfig("spiral"), grid)]
    logits, expected = (
        jax.jit(lambda x, model=model: model(x, mask="causal", pooling="last", grid=grid))(each)
        for model, each in ((spiral, patches), (raster, permuted))
    )
    np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize(("start_token", "first"), [("learned", 1), ("none", 0)])
def test_a_norm_after_pooling_replaces_the_backbones(start_token: str, first: int) -> None:
    vit = dataclasses.replace(VIT, start_token=start_token)
    model = random_module(
        lambda rngs: Classifier(
            vit, num_classes=5, grid=GRID, channels=3, norm_after_pooling=True, rngs=rngs
        )
    )
    graphdef, params = nnx.split(model)

    def logits(params, patches):
        return nnx.merge(graphdef, params)(patches, mask="full", pooling="mean", grid=GRID)

    blocks = model.backbone(make_patches(), mask="full", grid=GRID).blocks
    pooled = np.float64(blocks[-1])[:, first:].mean(axis=1)
    pooled -= pooled.mean(axis=-1, keepdims=True)
    pooled /= np.sqrt(np.square(pooled).mean(axis=-1, keepdims=True) + 1e-6)
    norm, head = model.pooled_norm, model.head
    expected = pooled * np.float64(norm.scale[...]) + np.float64(norm.bias[...])
    expected = expected @ np.float64(head.kernel[...]) + np.float64(head.bias[...])
    np.testing.assert_allclose(logits(params, make_patches()), expected, atol=2e-5)
    gradient = jax.grad(lambda p: jnp.sum(jnp.square(logits(p, make_patches()))))(params)
    for leaf in jax.tree.leaves(gradient["backbone"]["final_norm"]):
        np.testing.assert_array_equal(leaf, 0.0)
    assert np.abs(gradient["pooled_norm"]["scale"][...]).min() > 0


# Drop path.


def test_drop_path_scales_are_zero_or_the_inverse_of_the_share_that_is_kept() -> None:
    scales = np.asarray(drop_path_scales(jax.random.key(0), 0.3, 4, 5000))
    assert scales.shape == (4, 2, 5000)
    np.testing.assert_array_equal(scales[0], 1.0)  # the first block is never dropped
    for block, rate in enumerate([0.0, 0.1, 0.2, 0.3]):
        for branch in range(2):
            values = scales[block, branch]
            kept = values > 0
            np.testing.assert_allclose(values[kept], 1.0 / (1.0 - rate), rtol=1e-6)
            # Five standard deviations of a mean of 5000 draws.
            assert abs(kept.mean() - (1.0 - rate)) <= 5 * np.sqrt(rate * (1 - rate) / 5000)
    # Branches of a block and examples are dropped independently.
    both = (scales[3, 0] > 0) & (scales[3, 1] > 0)
    assert abs(both.mean() - 0.49) < 5 * np.sqrt(0.49 * 0.51 / 5000)


def test_a_dropped_branch_leaves_the_residual_stream_as_it_is() -> None:
    block = random_module(lambda rngs: Block(VIT, rngs=rngs))
    x = make_patches(3)[..., :1] + jnp.ones((3, 12, 32))
    same = block(x, mask="full", angles=None, branch_scales=jnp.zeros((2, 3)))
    np.testing.assert_array_equal(same, x)
    whole = block(x, mask="full", angles=None)
    scales = jnp.ones((2, 3)).at[:, 1].set(0.0)
    mixed = block(x, mask="full", angles=None, branch_scales=scales)
    np.testing.assert_array_equal(mixed[1], x[1])
    np.testing.assert_array_equal(mixed[0], whole[0])


def test_drop_path_is_off_without_a_key_and_without_a_rate() -> None:
    def vit(rate: float) -> ViT:
        config = dataclasses.replace(VIT, drop_path=rate)
        return random_module(lambda rngs: ViT(config, patch_dim=12, grid=GRID, rngs=rngs))

    patches, key = make_patches(), jax.random.key(0)
    base = vit(0.0)(patches, mask="full").tokens
    np.testing.assert_array_equal(vit(0.5)(patches, mask="full").tokens, base)
    np.testing.assert_array_equal(vit(0.0)(patches, mask="full", key=key).tokens, base)
    assert np.abs(vit(0.5)(patches, mask="full", key=key).tokens - base).max() > 0.1


def test_drop_path_has_the_gradient_of_the_branches_that_are_kept() -> None:
    config = dataclasses.replace(VIT, drop_path=0.6, remat="full")
    vit = random_module(lambda rngs: ViT(config, patch_dim=12, grid=GRID, rngs=rngs))
    key, patches = jax.random.key(1), make_patches(1)
    scales = np.asarray(drop_path_scales(key, 0.6, 3, 1))
    graphdef, params = nnx.split(vit)

    def loss(params: nnx.State) -> jax.Array:
        tokens = nnx.merge(graphdef, params)(patches, mask="full", key=key).tokens
        return jnp.sum(tokens * jnp.arange(32.0))

    gradient = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))["blocks"]
    assert (scales == 0).any() and (scales[1:] > 0).any()
    for block in range(3):
        for branch, name in enumerate(("attention", "mlp")):
            sizes = [float(jnp.abs(g[block]).max()) for g in jax.tree.leaves(gradient[name])]
            assert (max(sizes) > 0) == (scales[block, branch, 0] > 0)
