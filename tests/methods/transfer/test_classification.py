"""Classification: the loss against float64, what counts, and accuracy counted once for each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.evaluators.validation_loss import ValidationLoss
from darl_jax.methods.transfer.classification import (
    Classification,
    ClassificationConfig,
    correct_within,
    cross_entropy,
)
from darl_jax.methods.transfer.classifier import Classifier
from darl_jax.methods.transfer.mixing import MixingConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import parameters
from tests.evaluators.tiny import make_batches, make_context, random_images
from tests.float64 import log_softmax
from tests.methods_on_images import method
from tests.random_modules import random_module

CLASSES = 7
VIT = ViTConfig(width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")


@functools.cache
def make_model(drop_path: float = 0.0) -> Classifier:
    vit = dataclasses.replace(VIT, drop_path=drop_path)
    return random_module(
        lambda rngs: Classifier(vit, num_classes=CLASSES, grid=(4, 4), channels=1, rngs=rngs)
    )


def make_objective(**changes) -> Classification:
    return method(ClassificationConfig(num_classes=CLASSES, **changes))


def make_batch(number: int = 6, labels: list[int] | None = None) -> dict[str, jax.Array]:
    labels = list(range(number)) if labels is None else labels
    return {
        "image": jnp.asarray(random_images(number)),
        "label": jnp.asarray(labels, jnp.int32),
        "mask": jnp.ones(number, bool),
    }


def compiled(function):
    """`function(objective, model, ...)` as one program; else each operation is compiled alone."""

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def whole(objective, graphdef, state, *arguments):
        return function(objective, nnx.merge(graphdef, state), *arguments)

    return lambda objective, model, *arguments: whole(objective, *nnx.split(model), *arguments)


train = compiled(lambda objective, *arguments: objective.loss(*arguments))
validate = compiled(lambda objective, *arguments: objective.validate(*arguments))


@compiled
def float32_logits(objective, model, batch):
    config = objective.objective
    return model(objective.patches(batch), mask=config.mask, pooling=config.pooling, grid=(4, 4))


def logits_of(model: Classifier, batch: dict[str, jax.Array], objective: Classification):
    return np.asarray(float32_logits(objective, model, batch), np.float64)


@pytest.mark.parametrize(
    ("smoothing", "mask", "pooling"), [(0.0, "full", "last"), (0.1, "causal", "mean")]
)
def test_training_loss_is_the_smoothed_cross_entropy(smoothing, mask, pooling) -> None:
    objective = make_objective(label_smoothing=smoothing, mask=mask, pooling=pooling)
    model, batch = make_model(), make_batch()
    logs = log_softmax(logits_of(model, batch, objective))
    # Of what is smoothed every class gets its share, the right one too.
    expected = -np.mean(
        (1 - smoothing) * logs[np.arange(6), np.arange(6)] + smoothing * logs.mean(axis=-1)
    )
    loss, metrics = train(objective, model, batch, jax.random.key(0))
    assert abs(float(loss) - expected) < 1e-5
    assert float(metrics["loss"].compute()) == float(loss)


def test_examples_that_are_masked_or_have_no_label_count_nothing() -> None:
    objective, model = make_objective(), make_model()
    batch = make_batch(6, labels=[0, 1, 2, 3, -1, 5])
    batch["mask"] = batch["mask"].at[5].set(False)
    alone = {name: value[:4] for name, value in batch.items()}
    key = jax.random.key(0)
    loss = train(objective, model, batch, key)[0]
    assert np.isclose(loss, train(objective, model, alone, key)[0], rtol=1e-6)
    ours, theirs = (validate(objective, model, each, key) for each in (batch, alone))
    assert {"loss", "accuracy", "top5_accuracy"} == set(ours)
    for name, value in ours.items():
        assert float(value.count) == 4
        assert np.isclose(value.compute(), theirs[name].compute(), rtol=1e-6)
    # Nor does what they show reach the gradient of the others.
    black = {**batch, "image": batch["image"].at[4:].set(0)}
    assert np.isclose(loss, train(objective, model, black, key)[0], rtol=1e-6)


def test_validation_sees_whole_images_and_hard_labels() -> None:
    mixing = MixingConfig(mixup=0.8, cutmix=1.0, erasing_probability=1.0)
    plain, mixed = make_objective(label_smoothing=0.0), make_objective(mixing=mixing)
    batch, key = make_batch(), jax.random.key(1)
    expected = validate(plain, make_model(), batch, key)
    for name, value in validate(mixed, make_model(drop_path=0.9), batch, key).items():
        assert float(value.compute()) == float(expected[name].compute())
    training = train(plain, make_model(), batch, key)[0]
    assert np.isclose(expected["loss"].compute(), training, rtol=1e-6)
    assert not np.isclose(train(mixed, make_model(), batch, key)[0], training, rtol=1e-2)


def test_ties_and_nan_are_not_correct() -> None:
    logits = jnp.stack([jnp.zeros(9), jnp.full(9, jnp.nan), jnp.zeros(9).at[2].set(jnp.nan)])
    labels = jnp.asarray([0, 0, 2], jnp.int32)
    for k in (1, 5):
        np.testing.assert_array_equal(correct_within(logits, labels, k), np.zeros(3))


def test_cross_entropy_of_large_logits_is_finite() -> None:
    logits = jnp.asarray([[1e4, 0.0, -1e4]])
    assert float(cross_entropy(logits, jnp.asarray([[0.0, 0.0, 1.0]]))[0]) == pytest.approx(2e4)


def validation(batch_size: int) -> dict[str, float]:
    """Metrics of 19 images; tests/training/test_sharding.py compares them over devices."""
    model, images = make_model(), random_images(19, seed=4)
    labels = np.random.default_rng(5).integers(0, CLASSES, 19)
    # Padding that the model would give a class, and that would be right for it.
    batches = make_batches(images, batch_size, labels, padding=255)
    context = make_context(make_objective(), nnx.split(model)[0], make_mesh(MeshConfig()))
    evaluator = ValidationLoss(context, batches)
    return dict(evaluator.run(parameters(model), 0))


@pytest.mark.parametrize("batch_size", [3, 32])
def test_accuracy_counts_each_example_once_for_any_batch_size(batch_size: int) -> None:
    objective, model = make_objective(), make_model()
    images = random_images(19, seed=4)
    labels = np.random.default_rng(5).integers(0, CLASSES, 19)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(labels, jnp.int32)}
    logits = logits_of(model, batch, objective)
    ranks = np.sum(logits > logits[np.arange(19), labels][:, None], axis=-1)
    found = validation(batch_size)
    assert found["accuracy"] == np.mean(ranks == 0)
    assert found["top5_accuracy"] == np.mean(ranks < 5)
