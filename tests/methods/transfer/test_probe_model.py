"""Probes against float64 NumPy, and that nothing of them reaches the backbone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.transfer.probe_model import (
    BatchNorm,
    Probes,
    ProbesConfig,
)
from darl_jax.nn.vit import ViTConfig
from darl_jax.planning.matmul_flops import matmul_flops
from darl_jax.training.state import parameters
from tests.random_modules import random_module

VIT = ViTConfig(width=16, depth=4, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")
GRID = (3, 3)
CLASSES = 5
COUNTS = np.array([True, False, True, True, True, False])


def positive_variances(module):
    for path, value in nnx.iter_graph(module):
        if path and path[-1] == "running_var":
            value[...] = 0.5 + jnp.square(value[...])
    return module


def random_probe(create, seed=0):
    return positive_variances(random_module(create, seed))


def random_probes(vit=VIT, seed=0, **config):
    def create(rngs):
        return Probes(
            vit, ProbesConfig(**config), num_classes=CLASSES, grid=GRID, channels=1, rngs=rngs
        )

    return random_probe(create, seed)


def random_values(*shape, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=shape).astype(np.float32)


def apply(model, mask, counts=None):
    """Logits of `patches()`, compiled in one piece."""
    counts = None if counts is None else jnp.asarray(counts)
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda s, p: nnx.merge(graphdef, s)(p, mask=mask, grid=GRID, counts=counts)[0])
    return run(state, patches())


def block_outputs(model, mask):
    graphdef, state = nnx.split(model.backbone)
    return jax.jit(lambda s, p: nnx.merge(graphdef, s)(p, mask=mask, grid=GRID).blocks)(
        state, patches()
    )


def patches(number=6, seed=0):
    return jnp.asarray(random_values(number, 9, 4, seed=seed))


# --- batch normalization -------------------------------------------------------------------------


def moments(x, counts):
    """Mean, biased and unbiased variance of the rows that count, over tokens too."""
    rows = np.float64(x[counts]).reshape(-1, x.shape[-1])
    return rows.mean(axis=0), rows.var(axis=0), rows.var(axis=0, ddof=1)


def test_training_normalizes_by_the_biased_statistics_of_the_examples_that_count():
    x = random_values(6, 3, 7)
    mean, biased, _ = moments(x, COUNTS)
    x[~COUNTS] = np.nan
    normalized, term = BatchNorm(7)(jnp.asarray(x), jnp.asarray(COUNTS))
    expected = (np.float64(x) - mean) / np.sqrt(biased + 1e-6)
    np.testing.assert_allclose(normalized[COUNTS], expected[COUNTS], atol=3e-6)
    np.testing.assert_array_equal(normalized[~COUNTS], 0.0)
    assert term == 0.0


def test_a_step_of_a_tenth_of_the_gradient_is_torchs_running_average():
    """BatchNorm1d: running = 0.9 running + 0.1 batch's, with the unbiased variance."""
    norm = random_probe(lambda rngs: BatchNorm(7))
    before = parameters(norm)
    graphdef = nnx.split(norm)[0]
    x = random_values(6, 3, 7)
    mean, _, unbiased = moments(x, COUNTS)
    x[~COUNTS] = np.nan

    @jax.jit
    def gradients(params, x, counts):
        def term(params, x):
            return nnx.merge(graphdef, params)(x, counts)[1]

        return jax.grad(term, argnums=(0, 1))(params, x)

    gradient, of_x = gradients(before, jnp.asarray(x), jnp.asarray(COUNTS))
    for name, batch in (("running_mean", mean), ("running_var", unbiased)):
        expected = 0.9 * np.float64(before[name]) + 0.1 * batch
        np.testing.assert_allclose(before[name] - 0.1 * gradient[name], expected, rtol=2e-6)
    np.testing.assert_array_equal(of_x, 0.0)
    # A batch in which nothing counts moves nothing.
    for leaf in jax.tree.leaves(gradients(before, jnp.asarray(x), jnp.zeros(6, bool))):
        np.testing.assert_array_equal(leaf, 0.0)


# --- one probe -----------------------------------------------------------------------------------


def as_float64(module):
    return jax.tree.map(np.float64, parameters(module))


def linear_in_float64(params, x):
    norm, classifier = params["norm"], params["classifier"]
    x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-6)
    return x @ classifier["kernel"] + classifier["bias"]


def attentive_in_float64(params, x, heads):
    """Keys and values of every token, then attention head by head."""
    norm, classifier = params["norm"], params["classifier"]
    x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-6)
    keys, values = x @ params["key"]["kernel"], x @ params["value"]["kernel"]
    channels = x.shape[-1] // heads
    parts = []
    for head in range(heads):
        of_head = slice(head * channels, (head + 1) * channels)
        logits = keys[..., of_head] @ params["query"][of_head] / np.sqrt(channels)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        parts.append(np.einsum("bt,btc->bc", weights, values[..., of_head]))
    return np.concatenate(parts, axis=-1) @ classifier["kernel"] + classifier["bias"]


def test_initial_statistics_are_those_of_normal_features_and_each_probe_has_its_own_weights():
    def create():
        vit, config = dataclasses.replace(VIT, width=64), ProbesConfig(kind="attentive")
        shape = {"num_classes": 100, "grid": GRID, "channels": 1}
        return parameters(Probes(vit, config, **shape, rngs=nnx.Rngs(0)))["probes"]

    probes = jax.jit(create)()
    assert set(probes) == {"norm", "classifier", "query", "key", "value"}
    np.testing.assert_array_equal(probes["norm"]["running_mean"], np.zeros((4, 64)))
    np.testing.assert_array_equal(probes["norm"]["running_var"], np.ones((4, 64)))
    np.testing.assert_array_equal(probes["classifier"]["bias"], np.zeros((4, 100)))
    kernel = probes["classifier"]["kernel"]
    assert kernel.shape == (4, 64, 100)
    # Xavier-uniform, in 6400 draws: the standard error of the deviation is 0.6%.
    deviation = np.sqrt(2 / (64 + 100))
    np.testing.assert_allclose(np.std(kernel, axis=(1, 2)), deviation, rtol=0.04)
    assert len(np.unique(kernel)) > 0.99 * kernel.size


# --- probes of every block -----------------------------------------------------------------------


def test_with_the_final_norm_the_last_probe_sees_the_backbones_output():
    model = random_probes(pooling="start", final_norm=True)
    logits = apply(model, "full")
    graphdef, state = nnx.split(model.backbone)
    tokens = jax.jit(lambda s, p: nnx.merge(graphdef, s)(p, mask="full", grid=GRID).tokens)(
        state, patches()
    )
    params = jax.tree.map(lambda leaf: leaf[-1], as_float64(model)["probes"])
    expected = linear_in_float64(params, np.float64(tokens)[:, 0])
    np.testing.assert_allclose(logits[-1], expected, atol=3e-5)
    # The others read their own blocks through the same norm.
    norm = as_float64(model)["backbone"]["final_norm"]
    x = np.float64(block_outputs(model, "full"))[1, :, 0]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    params = jax.tree.map(lambda leaf: leaf[1], as_float64(model)["probes"])
    expected = linear_in_float64(params, x * norm["scale"] + norm["bias"])
    np.testing.assert_allclose(logits[1], expected, atol=3e-5)
    with pytest.raises(ValueError, match=r"objective\.average_blocks=2 must be 1"):
        ProbesConfig(final_norm=True, average_blocks=2)


@pytest.mark.parametrize(
    ("kind", "average_blocks", "first", "pooling", "mask"),
    [
        ("linear", 1, [0, 1, 2, 3], "last", "full"),
        ("linear", 3, [0, 0, 0, 1], "mean", "causal"),
        ("attentive", 3, [0, 0, 0, 1], "mean", "full"),
    ],
)
def test_a_probe_sees_the_mean_of_its_block_and_those_just_below_before_any_norm(
    kind, average_blocks, first, pooling, mask
):
    model = random_probes(kind=kind, average_blocks=average_blocks, pooling=pooling)
    if kind == "attentive":
        model.probes.query[...] = 4.0 * model.probes.query[...]  # far from uniform weights
    blocks = np.float64(block_outputs(model, mask))
    logits = apply(model, mask)
    params = as_float64(model)["probes"]
    for i in range(VIT.depth):
        x = blocks[first[i] : i + 1].mean(axis=0)
        of_block = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        if kind == "attentive":
            expected = attentive_in_float64(of_block, x[:, 1:], VIT.num_heads)
        else:
            pooled = x[:, -1] if pooling == "last" else x[:, 1:].mean(axis=1)
            expected = linear_in_float64(of_block, pooled)
        np.testing.assert_allclose(logits[i], expected, atol=3e-5)


def test_probes_of_some_blocks_start_and_see_what_they_do_among_all():
    def create(**config):
        config = ProbesConfig(kind="attentive", average_blocks=2, **config)
        make = lambda rngs: Probes(  # noqa: E731
            VIT, config, num_classes=CLASSES, grid=GRID, channels=1, rngs=rngs
        )
        return jax.jit(lambda: nnx.split(make(nnx.Rngs(0)))[1])(), nnx.split(
            nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        )[0]

    (all_state, all_graph), (state, graph) = create(), create(blocks=(1, 3))
    chosen = jax.tree.map(lambda leaf: leaf[np.array([0, 2])], all_state["probes"])
    jax.tree.map(np.testing.assert_array_equal, state["probes"], chosen)
    logits = apply(nnx.merge(all_graph, all_state), "causal")[np.array([0, 2])]
    np.testing.assert_allclose(apply(nnx.merge(graph, state), "causal"), logits, atol=1e-6)


def test_features_in_half_precision_meet_probes_in_float32():
    half = dataclasses.replace(VIT, dtype="bfloat16")
    model = random_probes(half, kind="attentive")
    logits = apply(model, "causal", COUNTS)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters(model)["probes"])} == {
        jnp.dtype("float32")
    }


def test_the_backbone_has_no_gradient_and_no_backward_pass():
    model = random_probes(kind="attentive")
    graphdef, params = nnx.split(model)[0], parameters(model)

    def loss(params, patches):
        model = nnx.merge(graphdef, params)
        logits, term = model(patches, mask="causal", grid=GRID, counts=jnp.asarray(COUNTS))
        return jnp.sum(jnp.square(logits)) + term

    gradient = jax.jit(jax.grad(loss))(params, patches())
    for leaf in jax.tree.leaves(gradient["backbone"]):
        np.testing.assert_array_equal(leaf, 0.0)
    for name, leaf in gradient["probes"]["classifier"].items():
        assert np.all(np.abs(leaf).max(axis=tuple(range(1, leaf.ndim))) > 0), name

    def blocks(params, patches):
        return nnx.merge(graphdef, params).backbone(patches, mask="causal", grid=GRID).blocks

    forward = matmul_flops(blocks, params, patches())
    probes = matmul_flops(loss, params, patches()) - forward
    # A probe: forward, again in its checkpoint, and backward twice at most.
    assert matmul_flops(jax.grad(loss), params, patches()) <= forward + 4 * probes
