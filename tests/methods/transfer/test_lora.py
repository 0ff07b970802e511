"""Adapters: where they start, what they train, what they cost, and what they merge to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.transfer.classification import ClassificationConfig
from darl_jax.methods.transfer.probe_model import ProbesConfig
from darl_jax.nn.blocks import linear
from darl_jax.nn.lora import AdaptedLinear, Adapter, LoRAConfig, is_adapter, merged
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import AdamWConfig, build_optimizer
from darl_jax.training.state import init_state, parameters
from darl_jax.training.step import make_train_step
from tests.evaluators.tiny import random_images
from tests.methods_on_images import images, method
from tests.random_modules import random_module

CLASSES = 4
AIM = LoRAConfig(("query", "value", "out"), rank=2)
ALL = LoRAConfig(("query", "key", "value", "out", "up", "down"), rank=3, alpha=2.0)
VIT = ViTConfig(width=16, depth=3, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")
BATCH = {
    "image": jnp.asarray(random_images(8)),
    "label": jnp.asarray([3, 0, -1, 2, 2, 1, 1, 0], jnp.int32),
    "mask": jnp.ones(8, bool),
    "replaced": jnp.zeros(8, bool),
    "stop": jnp.zeros(8, bool),
}


def with_adapters(lora, kind="classification", **model):
    if kind == "probes":
        objective = ProbesConfig(num_classes=CLASSES, kind="attentive", blocks=(2,), lora=lora)
    else:
        objective = ClassificationConfig(num_classes=CLASSES, lora=lora)
    return method(objective, VIT, **model)


def tokens(of, params):
    graphdef = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))[0]
    run = jax.jit(
        lambda p: nnx.merge(graphdef, p).backbone(of.patches(BATCH), mask="full").tokens,
        # Otherwise XLA leaves out roundings to bfloat16, depending on what it fuses.
        compiler_options={"xla_allow_excess_precision": False},
    )
    return np.asarray(run(params))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_step_0_the_model_is_the_frozen_one_bit_for_bit(dtype):
    of, plain = (with_adapters(lora, dtype=dtype) for lora in (ALL, LoRAConfig()))
    params = jax.tree.map(np.array, parameters(random_module(of.init)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("lora/b/kernel"):
            leaf[...] = 0.0
    frozen = merged(params, 0.0)  # without the adapters
    assert not any(map(is_adapter, paths(frozen)))
    np.testing.assert_array_equal(tokens(of, params), tokens(plain, frozen))


def paths(tree):
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(key.key for key in path)


def test_a_starts_as_loralibs_and_b_at_0():
    adapter = Adapter(64, 8, 32, dtype="float32", rngs=nnx.Rngs(0))
    a = np.asarray(adapter.a.kernel[...])
    # Kaiming-uniform with a = sqrt(5): the bound is 1 / sqrt(inputs).
    assert 0.99 / 8 < np.abs(a).max() <= 1 / 8
    assert a.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)  # of 2048 values
    assert not np.any(adapter.b.kernel[...])


def test_merged_kernels_give_what_the_adapters_give():
    with jax.enable_x64(True):
        of, plain = (with_adapters(lora, dtype="float64") for lora in (ALL, LoRAConfig()))
        drawn = parameters(random_module(of.init))
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), drawn)
        adapted, frozen = tokens(of, params), tokens(plain, merged(params, 0.0))
        assert np.abs(adapted - frozen).max() > 0.1
        found = tokens(plain, merged(params, 2.0 / 3))
    np.testing.assert_allclose(found, adapted, rtol=0, atol=1e-13)


def test_at_full_rank_with_a_the_identity_a_step_of_b_is_a_step_of_the_kernel():
    rng, width = np.random.default_rng(0), 6
    x, w = (rng.normal(size=(n, width)).astype(np.float32) for n in (5, width))
    layer = linear(width, width, dtype="float32", rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(w)
    config = LoRAConfig(("query",), rank=width, alpha=float(width))
    adapter = Adapter(width, width, width, dtype="float32", rngs=nnx.Rngs(0))
    adapter.a.kernel[...] = jnp.eye(width)
    graphdef, params = nnx.split(AdaptedLinear(layer, adapter, config.scale, rngs=nnx.Rngs(0)))

    def loss(params):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, params)(jnp.asarray(x))))

    gradient = nnx.to_pure_dict(jax.grad(loss)(params))
    after = nnx.to_pure_dict(params)
    after["lora"]["b"]["kernel"] -= 0.1 * gradient["lora"]["b"]["kernel"]
    dense = w - 0.1 * x.T @ np.cos(x @ w)
    np.testing.assert_allclose(merged(after, config.scale)["kernel"], dense, atol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "probes"])
def test_steps_move_adapters_and_head_and_leave_the_backbone_bit_for_bit(kind):
    of = with_adapters(AIM, kind)
    optimizer = build_optimizer(AdamWConfig(layer_decay=0.9), 0.01, of)
    state = init_state(of.init, optimizer, jax.random.key(0))
    graphdef = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))[0]
    step = jax.jit(make_train_step(graphdef, of, optimizer))
    before = state.params
    for _ in range(3):
        state, _ = step(state, BATCH, jax.random.key(1))
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, state.params)
    for path in paths(before):
        leaf = functools.reduce(lambda tree, name: tree[name], path, moved)
        assert leaf == of.trains(path), path
    moments = state.opt_state["adam"].mu
    assert {*paths(moments)} == {
        path for path in paths(before) if of.trains(path) and not path[-1].startswith("running")
    }


def test_the_state_of_aim_7b_with_the_papers_adapters_has_6_million_of_them():
    vit = ViTConfig(
        width=4096, depth=32, num_heads=32, mlp_dim=16384, patch_size=14, positions="sincos2d",
        start_token="none", patch_norm="layer", attention_bias=False, mlp_bias=False,
    )  # fmt: skip
    objective = ProbesConfig(
        num_classes=1000,
        kind="attentive",
        blocks=(32,),
        average_blocks=6,
        classifier_bias=False,
        lora=dataclasses.replace(AIM, rank=8),
    )
    of = method(objective, vit, images(224, (0.5,) * 3, (0.5,) * 3))
    optimizer = build_optimizer(AdamWConfig(), 1e-3, of)
    state = jax.eval_shape(lambda: init_state(of.init, optimizer, jax.random.key(0)))
    moments = jax.tree_util.tree_leaves_with_path(state.opt_state["adam"].mu)
    sizes = {tuple(key.key for key in path): leaf.size for path, leaf in moments}
    adapters = sum(size for path, size in sizes.items() if is_adapter(path))
    assert adapters == 3 * 2 * 4096 * 8 * 32 == 6_291_456
    assert sum(sizes.values()) - adapters == 2 * 4096**2 + 4096 + 1000 * 4096
    total = sum(leaf.size for leaf in jax.tree.leaves(state.params["backbone"]))
    assert adapters / total == pytest.approx(0.00097, abs=1e-5)  # "0.1% of parameters"


def test_a_layer_that_blocks_do_not_have_is_an_error():
    with pytest.raises(ValueError, match="'gate' is unknown; choose from"):
        with_adapters(LoRAConfig(("query", "gate")))


def test_adapters_are_trained_for_one_probe():
    with pytest.raises(ValueError, match=r"objective\.lora trains adapters for one probe"):
        method(ProbesConfig(num_classes=CLASSES, lora=AIM), VIT)
