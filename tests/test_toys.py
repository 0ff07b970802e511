"""A method, its data that is no picture, and an evaluator train through train.py as it is."""

import shutil

import numpy as np
import pytest

from darl_jax.config import data_config, default_config, evaluator, load
from darl_jax.data import DATA
from darl_jax.evaluators import EVALUATORS
from darl_jax.methods import METHODS, MODELS
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_params
from tests import toys
from tests.tiny_runs import refused, run


@pytest.fixture
def registered(monkeypatch):
    """The four lines that a user adds."""
    monkeypatch.setitem(METHODS, "parity", (toys.ParityConfig, toys.Parity))
    monkeypatch.setitem(MODELS, "dense", toys.DenseConfig)
    monkeypatch.setitem(DATA, "integers", toys.IntegersConfig)
    monkeypatch.setitem(EVALUATORS, "largest_weight", toys.LargestWeightConfig)


def parity_config():
    config = default_config("parity", model="dense", data="integers")
    config.batch_size, config.total_epochs, config.total_steps = 16, None, 30
    config.log_every_steps = 10
    config.optimizer.update(learning_rate=0.3, base_learning_rate=None, weight_decay=0.0)
    config.optimizer.update(warmup_epochs=None, warmup_steps=3)
    config.checkpoint.every_steps = 10
    config.evaluators.validation.every_steps = 15
    config.evaluators.weights = evaluator("largest_weight", every_steps=10)
    config.evaluators.weights.data = data_config("integers")
    config.evaluators.weights.data.count = 64
    return config


def test_toys_train_through_train_and_resume_bit_for_bit(registered, tmp_path) -> None:
    assert run(load(parity_config()), tmp_path) == 0
    lines = read_metrics(tmp_path)
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert len(losses) == 2 and losses[1] < losses[0] < 0.7
    assert lines[-1]["step"] == 30
    bits = {line["step"]: line["weights/bit"] for line in lines if "weights/bit" in line}
    assert bits == {10: 0.0, 20: 0.0, 30: 0.0}
    # The evaluator has data of its own.
    assert all(line["weights/records"] == 64 for line in lines if "weights/records" in line)
    assert (tmp_path / "pictures" / "weights_weights_00000030.png").is_file()
    whole, _, _ = restore_params(tmp_path)
    for step in ("20", "30"):
        shutil.rmtree(tmp_path / "checkpoints" / step)
    assert run(load(parity_config()), tmp_path) == 0
    again, _, step = restore_params(tmp_path)
    assert step == 30
    np.testing.assert_array_equal(again["kernel"], whole["kernel"], strict=True)


def test_a_method_on_other_data_names_the_feature(registered) -> None:
    config = parity_config()
    config.data = data_config("images")
    with pytest.raises(
        ValueError, match=r"reads the feature 'number', and config.data makes image"
    ):
        load(config)


def test_an_evaluator_that_does_not_suit_the_method_is_named(registered, tmp_path, capsys) -> None:
    config = parity_config()
    config.evaluators.neighbors = evaluator("knn")
    message = refused(load(config), tmp_path, capsys)
    assert "config.evaluators.neighbors: kind 'knn' reads a backbone on images" in message
    assert not [*(tmp_path / "checkpoints").iterdir()]
