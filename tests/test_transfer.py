"""From a pre-trained run to fine-tuning, probes and answers, through the programs themselves."""

import jax
import numpy as np
import pytest

from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_params
from tests.tiny_runs import FINE_TUNING, assert_same_bits, refused, run, saved_state, stopped, tiny


def assert_same_backbone(workdir, start):
    ours, theirs = (restore_params(folder)[0]["backbone"] for folder in (workdir, start))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_training_starts_from_the_checkpoint_s_backbone(tiny_run, tmp_path, caplog):
    caplog.set_level("INFO")
    still = tiny(
        objective="classification", total_steps=1, optimizer__base_learning_rate=0.0,
        init__checkpoint=str(tiny_run),
    )  # fmt: skip
    assert run(still, tmp_path) == 0
    assert_same_backbone(tmp_path, tiny_run)
    assert restore_params(tmp_path)[0]["head"]["kernel"].shape == (32, 10)
    log = "\n".join(caplog.messages)
    assert f"come from step 12 of {tiny_run}" in log
    assert "new: head/bias, head/kernel" in log
    assert "dropped: patch_decoder/head/to_pixels/bias, patch_decoder/head/to_pixels/kernel" in log


def test_fine_tuning_reports_accuracy_and_its_average_of_parameters(fine_tuned):
    history = read_metrics(fine_tuned)
    accuracies = [line["validation/accuracy"] for line in history if "validation/accuracy" in line]
    assert len(accuracies) == 2
    assert all(0.0 <= value <= 1.0 for value in accuracies)
    averaged, config, _ = restore_params(fine_tuned)
    assert tuple(config["objective"]["class_names"]) == tuple("0123456789")
    plain = restore_params(fine_tuned, averaged=False)[0]
    assert not np.array_equal(averaged["head"]["kernel"], plain["head"]["kernel"])


def test_fine_tuning_that_was_stopped_goes_on_bit_for_bit_without_the_checkpoint_it_began_from(
    fine_tuned, tiny_run, tmp_path
):
    begun = tmp_path / "begun"
    begun.symlink_to(tiny_run)
    # No evaluation before the stop: a signal in one ends the process.
    config = tiny(
        **FINE_TUNING, init__checkpoint=str(begun), evaluators__validation__every_steps=12
    )
    stopped(config, tmp_path / "run")
    begun.unlink()
    assert run(config, tmp_path / "run") == 0
    assert_same_bits(saved_state(fine_tuned, config), saved_state(tmp_path / "run", config))


def test_another_beginning_and_the_beginning_of_another_model_are_refused(
    fine_tuned, tiny_run, tmp_path, capsys
):
    assert "init.checkpoint" in refused(tiny(**FINE_TUNING), fine_tuned, capsys)
    wide = tiny(objective="classification", model__width=64, init__checkpoint=str(tiny_run))
    message = refused(wide, tmp_path, capsys)
    assert "config.model.width is 64 and the checkpoint's is 32" in message
    assert not list(tmp_path.glob("checkpoints/*"))


# LARS begins with steps that are small beside small kernels, and needs more of them.
@pytest.mark.parametrize(
    ("kind", "optimizer", "rate", "batch_size", "steps"),
    [
        pytest.param("linear", "lars", 3.0, 128, 300, marks=pytest.mark.slow),
        ("attentive", "adamw", 3e-3, 32, 60),
    ],
)
def test_probes_of_every_block_learn_and_the_backbone_does_not(
    tiny_run, tmp_path, kind, optimizer, rate, batch_size, steps
):
    config = tiny(
        objective="probes",
        optimizer=optimizer,
        objective__kind=kind,
        optimizer__base_learning_rate=None,
        optimizer__learning_rate=rate,
        kinds=["knn"],
        batch_size=batch_size,
        total_steps=steps,
        checkpoint__every_steps=steps,
        evaluators__validation__every_steps=steps,
        evaluators__knn__every_steps=steps,
        init__checkpoint=str(tiny_run),
    )
    assert run(config, tmp_path) == 0
    assert_same_backbone(tmp_path, tiny_run)
    last = {name: value for line in read_metrics(tmp_path) for name, value in line.items()}
    for block in ("block_01", "block_02"):
        assert last[f"validation/accuracy/{block}"] > 0.3, "chance is 0.1"
        assert last[f"knn/accuracy/{block}"] > 0.3
    state = saved_state(tmp_path, config)
    assert not [name for name in state if "opt_state" in name and "backbone" in name]
