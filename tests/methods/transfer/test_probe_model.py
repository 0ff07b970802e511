"""Probes against float64 NumPy, and that nothing of them reaches the backbone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.transfer.probe_model import (
    AttentiveProbe,
    BatchNorm,
    Probes,
    ProbesConfig,
)
from darl_jax.nn.readout import readout
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


@pytest.mark.parametrize("shape", [(6, 7), (6, 3, 7)])
def test_training_normalizes_by_the_biased_statistics_of_the_examples_that_count(shape):
    x = random_values(*shape)
    mean, biased, _ = moments(x, COUNTS)
    x[~COUNTS] = np.nan
    normalized, term = BatchNorm(7)(jnp.asarray(x), jnp.asarray(COUNTS))
    expected = (np.float64(x) - mean) / np.sqrt(biased + 1e-6)
    np.testing.assert_allclose(normalized[COUNTS], expected[COUNTS], atol=3e-6)
    np.testing.assert_array_equal(normalized[~COUNTS], 0.0)
    assert term == 0.0


@pytest.mark.parametrize("shape", [(6, 7), (6, 3, 7)])
def test_a_step_of_a_tenth_of_the_gradient_is_torchs_running_average(shape):
    """BatchNorm1d: running = 0.9 running + 0.1 batch's, with the unbiased variance."""
    norm = random_probe(lambda rngs: BatchNorm(7))
    before = parameters(norm)
    graphdef = nnx.split(norm)[0]
    x = random_values(*shape)
    mean, _, unbiased = moments(x, COUNTS)
    x[~COUNTS] = np.nan

    def term(params, x):
        return nnx.merge(graphdef, params)(x, jnp.asarray(COUNTS))[1]

    gradient, of_x = jax.grad(term, argnums=(0, 1))(before, jnp.asarray(x))
    for name, batch in (("running_mean", mean), ("running_var", unbiased)):
        expected = 0.9 * np.float64(before[name]) + 0.1 * batch
        np.testing.assert_allclose(before[name] - 0.1 * gradient[name], expected, rtol=2e-6)
    np.testing.assert_array_equal(of_x, 0.0)


def test_outside_training_running_statistics_normalize_every_example_alone():
    norm = random_probe(lambda rngs: BatchNorm(7))
    x = random_values(6, 3, 7)
    mean, variance = (np.float64(norm.running_mean[...]), np.float64(norm.running_var[...]))
    expected = (x - mean) / np.sqrt(variance + 1e-6)
    np.testing.assert_allclose(norm(jnp.asarray(x), None)[0], expected, atol=3e-6)
    np.testing.assert_array_equal(
        norm(jnp.asarray(x[:1]), None)[0], norm(jnp.asarray(x), None)[0][:1]
    )


def test_a_batch_in_which_nothing_counts_moves_nothing():
    norm = random_probe(lambda rngs: BatchNorm(7))
    graphdef, state = nnx.split(norm)

    def term(state):
        return nnx.merge(graphdef, state)(jnp.ones((6, 7)), jnp.zeros(6, bool))[1]

    for leaf in jax.tree.leaves(jax.grad(term)(state)):
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


@pytest.mark.parametrize("heads", [1, 4])
def test_attentive_probe_attends_with_keys_and_values_of_every_token(heads):
    probe = random_probe(lambda rngs: AttentiveProbe(16, heads, CLASSES, rngs=rngs))
    probe.query[...] = 4.0 * probe.query[...]  # so that weights are far from uniform
    x = random_values(6, 9, 16)
    expected = attentive_in_float64(as_float64(probe), np.float64(x), heads)
    uniform = attentive_in_float64(
        as_float64(probe) | {"query": np.zeros(16)}, np.float64(x), heads
    )
    assert np.abs(expected - uniform).max() > 0.3
    np.testing.assert_allclose(probe(jnp.asarray(x), None)[0], expected, atol=2e-5)


def test_attentive_probe_has_gradients_of_keys_values_and_query():
    probe = random_probe(lambda rngs: AttentiveProbe(16, 4, CLASSES, rngs=rngs))
    graphdef, state = nnx.split(probe)
    x = jnp.asarray(random_values(6, 9, 16))

    def loss(state):
        return jnp.sum(jnp.square(nnx.merge(graphdef, state)(x, jnp.ones(6, bool))[0]))

    gradient = nnx.to_pure_dict(jax.grad(loss)(state))
    for leaf in (gradient["query"], gradient["key"]["kernel"], gradient["value"]["kernel"]):
        assert np.abs(leaf).min() > 0


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_initial_statistics_are_those_of_normal_features_and_each_probe_has_its_own_weights(kind):
    def create():
        model = Probes(
            dataclasses.replace(VIT, width=64),
            ProbesConfig(kind=kind),
            num_classes=100,
            grid=GRID,
            channels=1,
            rngs=nnx.Rngs(0),
        )
        return parameters(model)["probes"]

    probes = jax.jit(create)()
    assert set(probes) == {"norm", "classifier"} | (
        {"query", "key", "value"} if kind == "attentive" else set()
    )
    np.testing.assert_array_equal(probes["norm"]["running_mean"], np.zeros((4, 64)))
    np.testing.assert_array_equal(probes["norm"]["running_var"], np.ones((4, 64)))
    np.testing.assert_array_equal(probes["classifier"]["bias"], np.zeros((4, 100)))
    kernel = probes["classifier"]["kernel"]
    assert kernel.shape == (4, 64, 100)
    # N(0, 0.01) in 6400 draws: the standard error of the deviation is 0.9%.
    np.testing.assert_allclose(np.std(kernel, axis=(1, 2)), 0.01, rtol=0.04)
    assert len(np.unique(kernel)) > 0.99 * kernel.size


# --- probes of every block -----------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "mask"), [("mean", "causal"), ("last", "full")])
def test_each_linear_probe_sees_its_own_blocks_output_before_any_norm(pooling, mask):
    model = random_probes(pooling=pooling)
    blocks, logits = block_outputs(model, mask), apply(model, mask)
    params = as_float64(model)["probes"]
    for i in range(VIT.depth):
        x = np.float64(readout(blocks[i], pooling))
        expected = linear_in_float64(jax.tree.map(lambda leaf, i=i: leaf[i], params), x)
        np.testing.assert_allclose(logits[i], expected, atol=3e-5)


@pytest.mark.parametrize(("average_blocks", "first"), [(1, [0, 1, 2, 3]), (3, [0, 0, 0, 1])])
@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_a_probe_sees_the_mean_of_its_block_and_those_just_below(kind, average_blocks, first):
    model = random_probes(kind=kind, average_blocks=average_blocks)
    blocks = np.float64(block_outputs(model, "full"))[:, :, 1:]
    logits = apply(model, "full")
    params = as_float64(model)["probes"]
    for i in range(VIT.depth):
        x = blocks[first[i] : i + 1].mean(axis=0)
        of_block = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        if kind == "linear":
            expected = linear_in_float64(of_block, x.mean(axis=1))
        else:
            expected = attentive_in_float64(of_block, x, VIT.num_heads)
        np.testing.assert_allclose(logits[i], expected, atol=3e-5)


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_features_in_half_precision_meet_probes_in_float32(kind):
    half = dataclasses.replace(VIT, dtype="bfloat16")
    model = random_probes(half, kind=kind)
    logits = apply(model, "causal", COUNTS)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters(model)["probes"])} == {
        jnp.dtype("float32")
    }


def _loss(graphdef):
    def loss(params, patches):
        model = nnx.merge(graphdef, params)
        logits, term = model(patches, mask="causal", grid=GRID, counts=jnp.asarray(COUNTS))
        return jnp.sum(jnp.square(logits)) + term

    return loss


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_the_backbone_has_no_gradient_and_no_backward_pass(kind):
    model = random_probes(kind=kind)
    graphdef, params = nnx.split(model)[0], parameters(model)
    gradient = jax.jit(jax.grad(_loss(graphdef)))(params, patches())
    for leaf in jax.tree.leaves(gradient["backbone"]):
        np.testing.assert_array_equal(leaf, 0.0)
    for name, leaf in gradient["probes"]["classifier"].items():
        assert np.all(np.abs(leaf).max(axis=tuple(range(1, leaf.ndim))) > 0), name

    def blocks(params, patches):
        return nnx.merge(graphdef, params).backbone(patches, mask="causal", grid=GRID).blocks

    forward = matmul_flops(blocks, params, patches())
    probes = matmul_flops(_loss(graphdef), params, patches()) - forward
    step = matmul_flops(jax.grad(_loss(graphdef)), params, patches())
    # A probe: forward, again in its checkpoint, and backward twice at most.
    assert step <= forward + 4 * probes


def test_a_probes_logits_do_not_depend_on_the_others():
    model = random_probes()
    graphdef, params = nnx.split(model)[0], parameters(model)
    other = jax.tree.map(lambda leaf: leaf.at[1].mul(7.0), params["probes"])
    changed = nnx.merge(graphdef, params | {"probes": other})
    before, after = apply(model, "causal", COUNTS), apply(changed, "causal", COUNTS)
    np.testing.assert_array_equal(after[np.array([0, 2, 3])], before[np.array([0, 2, 3])])
    assert np.all(after[1] != before[1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "mlp"),
        ("pooling", "max"),
        ("average_blocks", 0),
        ("label_smoothing", 1.0),
        ("num_classes", 1),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_key(key, value):
    with pytest.raises(ValueError, match=rf"objective\.{key}="):
        ProbesConfig(**{key: value})
