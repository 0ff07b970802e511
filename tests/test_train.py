"""A whole run: it learns, it goes on where it was, it leaves as it says, it keeps what it saved."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from darl_jax import train
from darl_jax.config import from_file, load, to_config_dict
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_params
from tests.programs import refusal
from tests.tiny_runs import assert_same_bits, run, saved_state, tiny

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def test_loss_falls_and_validation_runs_when_it_is_due(tiny_run):
    history = read_metrics(tiny_run)
    losses = [line["train/loss"] for line in history if "train/loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert [line["step"] for line in history if "validation/loss" in line] == [6, 12]


def test_checkpoint_can_be_read_for_its_parameters_alone(tiny_run):
    params, config, step = restore_params(tiny_run)
    assert step == 12
    assert config["model"]["width"] == 32
    assert params["backbone"]["blocks"]["mlp"]["up"]["kernel"].shape == (2, 32, 64)


def test_resumed_run_equals_one_that_was_not_stopped(tiny_run, tmp_path, monkeypatch, capsys):
    config = tiny(evaluators__validation__every_steps=12)
    add = train.StepMetrics.add

    def stop_at_step_4(self, step, metrics):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        add(self, step, metrics)

    monkeypatch.setattr(train.StepMetrics, "add", stop_at_step_4)
    assert run(config, tmp_path) == 75
    # The batch of step 6 carries the request, for that of 5 is on the devices already; its metrics
    # are read two steps later. A thread hears of the signal, perhaps a step late.
    step = restore_params(tmp_path)[2]
    assert step in (8, 9)
    assert f"SIGTERM: step {step} of 12 is saved" in capsys.readouterr().err
    assert run(config, tmp_path) == 0
    assert_same_bits(saved_state(tiny_run, config), saved_state(tmp_path, config))


def test_evaluation_forces_no_checkpoint(tmp_path, monkeypatch):
    saved, save = [], train.Checkpointer.save

    def recorded(self, step, *arguments):
        saved.append(step)
        save(self, step, *arguments)

    monkeypatch.setattr(train.Checkpointer, "save", recorded)
    config = tiny(evaluators__validation__every_steps=3, checkpoint__every_steps=8)
    assert run(config, tmp_path) == 0
    assert saved == [8, 12]
    evaluated = [line["step"] for line in read_metrics(tmp_path) if "validation/loss" in line]
    assert evaluated == [3, 6, 9, 12]


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
    with pytest.raises(SystemExit) as caught:
        run(tiny(kinds=["knn"], evaluators__knn__every_steps=6), tmp_path)
    assert caught.value.code == 1
    assert "evaluator 'validation' at step 6: a shard is gone" in capsys.readouterr().err
    # Evaluators run in the order of their names.
    (line,) = [line for line in read_metrics(tmp_path) if "knn/accuracy/block_01" in line]
    assert line["step"] == 6


def test_an_evaluator_that_does_not_suit_the_data_ends_the_run_before_its_first_step(
    tmp_path, capsys
):
    bank = tiny().data
    few = dataclasses.replace(bank, train_split="train[:15]")
    config = tiny(kinds=["knn"], evaluators__knn__data=to_config_dict(few))
    with pytest.raises(SystemExit) as caught:
        run(config, tmp_path)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "config.evaluators.knn: neighbors=20 must not be more than the 15 records" in message
    assert not read_metrics(tmp_path)


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
from tests.programs import refusal
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
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_EVALUATION, str(tmp_path)],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "evaluating" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(timeout=120) == 75
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


def test_run_with_another_model_is_refused_with_the_keys(tiny_run, capsys):
    before = saved_state(tiny_run, tiny())
    with pytest.raises(SystemExit) as caught:
        run(tiny(model__width=64, seed=1), tiny_run)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "model.width: 32 in the checkpoint, 64 now" in message
    assert "seed: 0 in the checkpoint, 1 now" in message
    assert_same_bits(before, saved_state(tiny_run, tiny()))


def test_run_can_be_made_longer_and_watched_otherwise(tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    longer = tiny(total_steps=14, log_every_steps=1, evaluators__validation__every_steps=0)
    assert run(longer, workdir) == 0
    assert restore_params(workdir)[2] == 14


def test_run_cannot_end_before_its_checkpoint(tiny_run, capsys):
    with pytest.raises(SystemExit) as caught:
        run(tiny(total_steps=5), tiny_run)
    assert caught.value.code == 2
    assert "has a checkpoint of step 12" in capsys.readouterr().err


def test_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    config = tiny(
        optimizer__base_learning_rate=1e30, max_dropped_in_a_row=3, total_steps=30,
        checkpoint__every_steps=1, optimizer__warmup_steps=4,
    )  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        run(config, tmp_path)
    assert caught.value.code == 3
    assert "3 steps in a row" in capsys.readouterr().err
    state = saved_state(tmp_path, config)
    assert all(np.isfinite(leaf).all() for leaf in state.values())


def test_batch_that_does_not_divide_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(tiny(batch_size=33, accumulation_steps=2), tmp_path)
    assert caught.value.code == 2
    assert "config.batch_size=33 must be a multiple of 2" in capsys.readouterr().err


def test_workdir_that_cannot_be_made_is_named_with_its_flag(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"--workdir=.*/file cannot be used"):
        train.make_workdir(epath.Path(tmp_path / "file"))


def command(workdir, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "darl_jax.train", "--config=configs/digits.py:mse",
        f"--workdir={workdir}", "--config.batch_size=32", "--config.model.width=32",
        "--config.model.depth=2", "--config.evaluators.validation.every_steps=0",
        "--config.evaluators.pictures.every_steps=0", "--config.evaluators.probe.every_steps=0",
        *arguments,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.model.widht=3", "--config.model.widht=3: there is no key 'widht' Did you mean"),
        ("--config.batch_size=many", "--config.batch_size=many"),
        ("--wrkdir=x", "wrkdir"),
        ("--config=configs/no_such_file.py", "no_such_file.py"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, monkeypatch, capsys, argument, message):
    monkeypatch.chdir(REPOSITORY)
    assert message in refusal(capsys, "train", *command(tmp_path)[3:], argument)


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_before_training_ends_at_once_and_saves_nothing(tmp_path, number, code):
    process = subprocess.Popen(command(tmp_path), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "Parameters:" in line:  # The next thing is to compile.
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait() == code
    assert "before training began: nothing was changed" in rest
    assert not list(tmp_path.glob("checkpoints/*"))


def kill_and_restart(workdir, steps: int, kills: int, seed: int) -> int:
    """Runs to the end through `kills` SIGKILLs at random moments; returns how many hit a save."""
    generator = random.Random(seed)
    arguments = command(
        workdir, f"--config.total_steps={steps}", "--config.checkpoint.every_steps=2"
    )
    metrics = pathlib.Path(workdir) / "metrics.jsonl"
    checkpoints = pathlib.Path(workdir) / "checkpoints"
    mid_save = 0
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(workdir) / "cache")}
    for _ in range(kills):
        size = metrics.stat().st_size if metrics.exists() else 0
        process = subprocess.Popen(
            arguments, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_size <= size):
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 1.5))
        process.kill()
        process.wait()
        mid_save += any("tmp" in path.name for path in checkpoints.iterdir())
    subprocess.run(arguments, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    return mid_save


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_leave_no_trace_in_parameters_or_optimizer(tmp_path):
    steps = 700
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    mid_save = kill_and_restart(killed, steps, kills=10, seed=0)
    print(f"{mid_save} of 10 kills hit a save that was under way")
    subprocess.run(
        command(undisturbed, f"--config.total_steps={steps}", "--config.checkpoint.every_steps=2"),
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    config = from_file(f"{REPOSITORY}/configs/digits.py:mse")
    config.model.update(width=32, depth=2)
    config = load(config)
    assert_same_bits(saved_state(undisturbed, config), saved_state(killed, config))
    history = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert 0 < sum("purge_step" in line for line in history) <= 10
