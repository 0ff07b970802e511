"""A whole run: it learns, it goes on where it was, it leaves as it says, it keeps what it saved."""

import dataclasses
import shutil
import signal

import numpy as np
import pytest

from darl_jax import train
from darl_jax.config import to_config_dict
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_params
from tests.programs import finish, refusal, start
from tests.tiny_runs import assert_same_bits, refused, run, saved_state, stopped, tiny


def test_loss_falls_and_validation_runs_when_it_is_due(tiny_run):
    history = read_metrics(tiny_run)
    losses = [line["train/loss"] for line in history if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert [line["step"] for line in history if "validation/loss" in line] == [6, 12]


def test_resumed_run_equals_one_that_was_not_stopped(tiny_run, tmp_path, capsys):
    config = tiny(evaluators__validation__every_steps=12)
    stopped(config, tmp_path)
    # The batch of step 6 carries the request, for that of 5 is on the devices already; its metrics
    # are read two steps later. A thread hears of the signal, perhaps a step late.
    step = restore_params(tmp_path)[2]
    assert step in (8, 9)
    assert f"SIGTERM: step {step} of 12 is saved" in capsys.readouterr().err
    assert run(config, tmp_path) == 0
    assert_same_bits(saved_state(tiny_run, config), saved_state(tmp_path, config))


def test_nothing_moves_between_host_and_devices_in_the_loop_unsaid(tmp_path, monkeypatch):
    """A batch that was not put on the devices is refused, not moved by the step."""

    def on_the_host(rows, inputs, mesh, *, stop):
        return {
            **{name: np.asarray(rows[name]) for name in (*inputs, "mask", "replaced")},
            "stop": np.full(len(rows["mask"]), stop),
        }

    monkeypatch.setattr(train, "device_batch", on_the_host)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        run(tiny(), tmp_path)


def test_a_failing_evaluator_is_named_with_its_step_and_the_others_values_are_kept(
    tmp_path, monkeypatch, capsys
):
    def fail(self, params, step):
        raise ValueError("a shard is gone")

    monkeypatch.setattr("darl_jax.evaluators.validation_loss.ValidationLoss.run", fail)
    config = tiny(kinds=["knn"], evaluators__knn__every_steps=6, checkpoint__every_steps=8)
    message = refused(config, tmp_path, capsys, code=1)
    assert "evaluator 'validation' at step 6: a shard is gone" in message
    # Evaluators run in the order of their names.
    (line,) = [line for line in read_metrics(tmp_path) if "knn/accuracy/block_01" in line]
    assert line["step"] == 6
    assert not [*(tmp_path / "checkpoints").iterdir()], "an evaluation forces a checkpoint"


def test_an_evaluator_that_does_not_suit_the_data_ends_the_run_before_its_first_step(
    tmp_path, capsys
):
    few = dataclasses.replace(tiny().data, train_split="train[:15]")
    config = tiny(kinds=["knn"], evaluators__knn__data=to_config_dict(few))
    message = refused(config, tmp_path, capsys)
    assert "config.evaluators.knn: neighbors=20 must not be more than the 15 records" in message
    assert not [*tmp_path.glob("*.*")], "metrics of a run that did not begin"


def test_finished_run_is_left_as_it_is(tiny_run):
    before = saved_state(tiny_run, tiny())
    assert run(tiny(), tiny_run) == 0
    assert_same_bits(before, saved_state(tiny_run, tiny()))


def test_last_evaluation_is_made_up_for_after_a_kill_in_the_middle_of_it(tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def kill(*_, **__):
        raise KilledError

    config = tiny(evaluators__validation__every_steps=100)
    with monkeypatch.context() as patch:
        patch.setattr(train.Evaluation, "run", kill)
        with pytest.raises(KilledError):
            run(config, tmp_path)
    assert run(config, tmp_path) == 0
    assert [line["step"] for line in read_metrics(tmp_path) if "validation/loss" in line] == [12]
    assert run(config, tmp_path) == 0
    assert len([line for line in read_metrics(tmp_path) if "validation/loss" in line]) == 1


_SLOW_EVALUATION = """
import sys, time
from darl_jax.evaluators.validation_loss import ValidationLoss
from tests.tiny_runs import run, tiny

def evaluate(*_):
    print("evaluating", file=sys.stderr, flush=True)
    time.sleep(250)

ValidationLoss.run = evaluate
run(tiny(checkpoint__every_steps=5), sys.argv[1])
"""


@pytest.mark.process
def test_a_signal_in_an_evaluation_loses_no_step_and_the_evaluation_is_made_up_for(
    tiny_run, tmp_path
):
    process = start("-c", _SLOW_EVALUATION, tmp_path)
    while "evaluating" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, rest = finish(process, 75)
    # The last checkpoint before the signal was step 5's.
    assert f"SIGTERM: step 6 of 12 is saved in {tmp_path}" in rest
    assert run(tiny(checkpoint__every_steps=5), tmp_path) == 0
    steps = [line["step"] for line in read_metrics(tmp_path) if "validation/loss" in line]
    assert steps == [6, 12]
    assert_same_bits(saved_state(tiny_run, tiny()), saved_state(tmp_path, tiny()))


def test_damaged_checkpoint_is_put_aside_for_the_one_before_it(tiny_run, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert run(tiny(), workdir) == 0
    assert any("12" in line and "damaged" in line for line in caplog.messages)
    assert_same_bits(saved_state(tiny_run, tiny()), saved_state(workdir, tiny()))
    assert [path.name for path in (workdir / "damaged_checkpoints").iterdir()] == ["12"]


def test_another_model_and_an_end_before_the_checkpoint_are_refused(tiny_run, capsys):
    before = saved_state(tiny_run, tiny())
    message = refused(tiny(model__width=64, seed=1), tiny_run, capsys)
    assert "model.width: 32 in the checkpoint, 64 now" in message
    assert "seed: 0 in the checkpoint, 1 now" in message
    message = refused(tiny(total_steps=5), tiny_run, capsys)
    assert "has a checkpoint of step 12" in message
    assert_same_bits(before, saved_state(tiny_run, tiny()))


def test_run_can_be_made_longer_and_watched_otherwise(tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    longer = tiny(total_steps=14, log_every_steps=1, evaluators__validation__every_steps=0)
    assert run(longer, workdir) == 0
    assert restore_params(workdir)[2] == 14


def test_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    config = tiny(
        optimizer__base_learning_rate=1e30, max_dropped_in_a_row=3, total_steps=30,
        checkpoint__every_steps=1, optimizer__warmup_steps=4,
    )  # fmt: skip
    assert "3 steps in a row" in refused(config, tmp_path, capsys, code=3)
    state = saved_state(tmp_path, config)
    assert all(np.isfinite(leaf).all() for leaf in state.values())


def test_batch_that_does_not_divide_and_a_workdir_that_cannot_be_made_are_named(tmp_path, capsys):
    message = refused(tiny(batch_size=33, accumulation_steps=2), tmp_path, capsys)
    assert "config.batch_size=33 must be a multiple of 2" in message
    (tmp_path / "file").write_text("")
    workdir = f"--workdir={tmp_path / 'file'}"
    message = refusal(capsys, "train", "--config=configs/digits.py", workdir)
    assert message == f"error: {workdir} cannot be used: File exists"


def test_processes_compare_every_key_and_the_records_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    """tests/runtime/test_cluster.py has what becomes of a difference."""
    compared = {}

    def differ(content, name):
        compared.update(content)
        raise ValueError(name)

    monkeypatch.setattr("darl_jax.runtime.cluster.check_alike", differ)
    message = refused(tiny(log_every_steps=7), tmp_path, capsys)
    assert message == "error: keys of the config, or records,\n"
    assert compared["log_every_steps"] == 7
    assert compared["model"]["width"] == 32
    assert compared["train_records"].startswith("1297, ")
    assert not (tmp_path / "checkpoints").exists()


def test_a_refused_run_leaves_no_folder_behind_and_removes_none_that_was_there(tmp_path, capsys):
    for argument in ("--config.init.checkpoint=/nowhere", "--config.batch_size=0"):
        refusal(
            capsys, "train", "--config=configs/digits.py", f"--workdir={tmp_path}/a/b", argument
        )
        assert not [*tmp_path.iterdir()]
    (tmp_path / "there").mkdir()
    refusal(capsys, "train", "--config=configs/digits.py", f"--workdir={tmp_path}/there", argument)
    assert (tmp_path / "there").is_dir()


def command(workdir, *arguments: str) -> list[str]:
    return [
        "-m", "darl_jax.train", "--config=configs/digits.py:mse",
        f"--workdir={workdir}", "--config.batch_size=32", "--config.model.width=32",
        "--config.model.depth=2", "--config.evaluators.validation.every_steps=0",
        "--config.evaluators.pictures.every_steps=0", "--config.evaluators.probe.every_steps=0",
        *arguments,
    ]  # fmt: skip


@pytest.mark.process
def test_signal_before_training_ends_at_once_and_saves_nothing(tmp_path):
    process = start(*command(tmp_path))
    while "Parameters:" not in process.stderr.readline():  # The next thing is to compile.
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, rest = finish(process, 130)
    assert "before training began: nothing was changed" in rest
    assert not list(tmp_path.glob("checkpoints/*"))
