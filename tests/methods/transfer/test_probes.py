"""Probes at every depth: each learns what it would alone, and the backbone learns nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.evaluators.validation_loss import ValidationLoss
from darl_jax.methods.transfer.probe_model import Probes, ProbesConfig
from darl_jax.methods.transfer.probes import ProbeMethod
from darl_jax.nn.readout import readout
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import AdamWConfig, LarsConfig, make_optimizer
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import TrainState, parameters
from darl_jax.training.step import make_train_step
from tests.evaluators.tiny import make_batches, make_context, random_images
from tests.float64 import dense, log_softmax
from tests.methods_on_images import method
from tests.random_modules import random_module

CLASSES = 7
VIT = ViTConfig(width=16, depth=3, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")
KEY = jax.random.key(0)
LABELS = [3, 0, -1, 6, 2, 5, 1, 4]
COUNTS = np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)  # without the unlabeled and the masked


@functools.cache
def make_model(kind: str = "linear", classes: int = CLASSES):
    """(graphdef, parameters), the latter random but for variances, which are positive."""
    model = random_module(
        lambda rngs: Probes(
            VIT,
            ProbesConfig(kind=kind),
            num_classes=classes,
            grid=(4, 4),
            channels=1,
            rngs=rngs,
        )
    )
    params = parameters(model)
    norm = params["probes"]["norm"]
    norm["running_var"] = 0.5 + jnp.square(norm["running_var"])
    return nnx.split(model)[0], params


def make_objective(**changes) -> ProbeMethod:
    return method(ProbesConfig(num_classes=CLASSES, **changes), VIT)


def make_batch(images=None) -> dict[str, jax.Array]:
    return {
        "image": jnp.asarray(random_images(8) if images is None else images),
        "label": jnp.asarray(LABELS, jnp.int32),
        "mask": jnp.arange(8) != 5,
        "replaced": jnp.zeros(8, bool),
        "stop": jnp.zeros(8, bool),
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def loss_and_gradient(objective, graphdef, params, batch):
    def loss_fn(params):
        return objective.loss(nnx.merge(graphdef, params), batch, KEY)

    (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return loss, metrics, gradient


@functools.cache
def pooled_features():
    """Of every block, in float64."""
    graphdef, params = make_model()

    @jax.jit
    def blocks(params, batch):
        backbone = nnx.merge(graphdef, params).backbone
        return backbone(make_objective().patches(batch), mask="causal").blocks

    return np.float64(readout(blocks(params, make_batch()), "mean"))


def alone_in_float64(params, x, smoothing):
    """Loss of one linear probe in training, its gradients, and its batch's statistics."""
    x, labels = x[COUNTS], np.array(LABELS)[COUNTS]
    mean, variance, unbiased = x.mean(axis=0), x.var(axis=0), x.var(axis=0, ddof=1)
    x = (x - mean) / np.sqrt(variance + 1e-6)
    logits = dense(params["classifier"], x)
    log_p = log_softmax(logits)
    targets = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    error = (np.exp(log_p) - targets) / len(x)
    return {
        "loss": -(targets * log_p).sum(axis=1).mean(),
        "accuracy": np.mean(np.argmax(logits, axis=1) == labels),
        "kernel": x.T @ error,
        "bias": error.sum(axis=0),
        "running_mean": np.float64(params["norm"]["running_mean"]) - mean,
        "running_var": np.float64(params["norm"]["running_var"]) - unbiased,
    }


def test_each_probe_has_the_loss_and_gradient_that_it_has_alone():
    smoothing = 0.1
    graphdef, params = make_model()
    batch = make_batch()
    objective = make_objective(label_smoothing=smoothing)
    loss, metrics, gradient = loss_and_gradient(objective, graphdef, params, batch)
    x = pooled_features()
    alone = [
        alone_in_float64(jax.tree.map(lambda leaf, i=i: leaf[i], params["probes"]), x[i], smoothing)
        for i in range(VIT.depth)
    ]
    assert float(loss) == pytest.approx(sum(one["loss"] for one in alone), rel=1e-5)
    reported = np.mean([one["loss"] for one in alone])
    assert float(metrics["loss"].compute()) == pytest.approx(reported, rel=1e-5)
    accuracy = np.mean([one["accuracy"] for one in alone])
    assert float(metrics["accuracy"].compute()) == pytest.approx(accuracy)
    found = gradient["probes"]["classifier"] | gradient["probes"]["norm"]
    for name, of_all in found.items():
        for i, one in enumerate(alone):
            # Features of order 1, known to some 1e-6.
            np.testing.assert_allclose(of_all[i], one[name], atol=3e-5, err_msg=f"{name} {i}")


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_what_is_masked_or_unlabeled_changes_neither_loss_nor_gradient(kind):
    graphdef, params = make_model(kind)
    images = random_images(8)
    other = np.where(COUNTS[:, None, None, None], images, 255 - images)
    objective = make_objective(kind=kind)
    first = loss_and_gradient(objective, graphdef, params, make_batch(images))
    second = loss_and_gradient(objective, graphdef, params, make_batch(other))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def make_state(optimizer, params) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), zero, zero)


@pytest.mark.parametrize(
    ("kind", "config"),
    [("linear", LarsConfig()), ("attentive", AdamWConfig(clip_norm=3.0, weight_decay=0.5))],
)
def test_steps_leave_the_backbone_bit_for_bit_and_move_all_of_the_probes(kind, config):
    graphdef, params = make_model(kind)
    objective = make_objective(kind=kind)
    optimizer = make_optimizer(config, 0.1, trains=objective.trains, stacked=objective.stacked)
    step = jax.jit(make_train_step(graphdef, objective, optimizer))
    state = make_state(optimizer, params)
    for _ in range(2):
        state, _ = step(state, make_batch(), KEY)
    assert int(state.dropped_updates) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params["backbone"], params["backbone"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params["probes"]):
        before = functools.reduce(lambda tree, key: tree[key.key], path, params["probes"])
        assert np.all(np.any(leaf != before, axis=tuple(range(1, leaf.ndim)))), path


def test_running_statistics_are_torchs_with_micro_batches_too():
    """Two micro-batches: 0.9 running + 0.1 (the mean of their statistics)."""
    graphdef, params = make_model()
    objective = make_objective()
    optimizer = make_optimizer(LarsConfig(), 0.0, trains=objective.trains, stacked="probes")
    batch = make_batch()
    x = pooled_features()
    norm = params["probes"]["norm"]
    for steps in (1, 2):
        step = jax.jit(make_train_step(graphdef, objective, optimizer, accumulation_steps=steps))
        state, _ = step(make_state(optimizer, params), batch, KEY)
        parts = [x[:, i::steps][:, COUNTS[i::steps]] for i in range(steps)]
        after = state.params["probes"]["norm"]
        mean = np.mean([part.mean(axis=1) for part in parts], axis=0)
        variance = np.mean([part.var(axis=1, ddof=1) for part in parts], axis=0)
        for name, expected in (("running_mean", mean), ("running_var", variance)):
            expected = 0.9 * np.float64(norm[name]) + 0.1 * expected
            np.testing.assert_allclose(after[name], expected, atol=2e-6)
        np.testing.assert_array_equal(
            state.params["probes"]["classifier"]["kernel"], params["probes"]["classifier"]["kernel"]
        )


def test_validation_has_each_blocks_accuracy_over_all_examples_once():
    graphdef, params = make_model()
    images, labels = random_images(8), np.array(LABELS)
    mesh = make_mesh(MeshConfig())
    batches = make_batches(images, 3, labels, padding=255)
    context = make_context(make_objective(), graphdef, mesh, key=KEY)
    found = dict(ValidationLoss(context, batches).run(params, 0))

    x = pooled_features()[:, labels >= 0]
    labels = labels[labels >= 0]
    losses = []
    for i in range(VIT.depth):
        probe = jax.tree.map(lambda leaf, i=i: np.float64(leaf[i]), params["probes"])
        norm = probe["norm"]
        normal = (x[i] - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-6)
        logits = dense(probe["classifier"], normal)
        order, log_p = np.argsort(-logits, axis=1), log_softmax(logits)
        losses.append(-log_p[np.arange(len(labels)), labels].mean())
        block = f"block_{i + 1:02d}"
        assert found[f"loss/{block}"] == pytest.approx(losses[-1], rel=1e-5)
        top_1 = np.mean(order[:, 0] == labels)
        top_5 = np.mean(np.any(order[:, :5] == labels[:, None], axis=1))
        assert found[f"accuracy/{block}"] == pytest.approx(top_1)
        assert found[f"top5_accuracy/{block}"] == pytest.approx(top_5)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert len(found) == 1 + 3 * VIT.depth
