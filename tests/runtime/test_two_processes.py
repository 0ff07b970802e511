"""Two processes are one run: the same losses and checkpoints, one end, and one run in a workdir."""

import pathlib
import signal
import subprocess
import time

import pytest

from darl_jax.monitoring.writers import read_metrics
from tests import programs

pytestmark = pytest.mark.process

FAR = 4000


def arguments(workdir: pathlib.Path, *more: str) -> list[str]:
    return [
        f"--config={programs.REPOSITORY}/configs/digits.py:mse", f"--workdir={workdir}",
        "--config.batch_size=32", "--config.model.width=32", "--config.model.depth=2",
        "--config.total_steps=24", "--config.log_every_steps=6",
        "--config.checkpoint.every_steps=6",
        "--config.evaluators.validation.every_steps=12", "--config.evaluators.probe.every_steps=0",
        "--config.evaluators.pictures.every_steps=0", *more,
    ]  # fmt: skip


def start(workdir: pathlib.Path, *more: str) -> list[subprocess.Popen]:
    """A run of two processes."""
    address = programs.free_address()
    return [
        programs.start(
            "-m", "darl_jax.train", *arguments(workdir, *more),
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    errors = [process.communicate(timeout=280)[1] for process in processes]
    return [process.returncode for process in processes], errors


def losses(workdir: pathlib.Path, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in read_metrics(workdir) if name in line}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("two")
    codes, errors = finish(start(workdir))
    assert codes == [0, 0], errors
    return workdir


@pytest.mark.slow
def test_losses_of_two_processes_are_those_of_one(two, tmp_path):
    assert programs.call("train", *arguments(tmp_path)) == 0
    for name in ("train/loss", "validation/loss"):
        assert len(losses(tmp_path, name)) >= 2
        assert losses(two, name) == pytest.approx(losses(tmp_path, name), rel=1e-5)


def test_signal_to_one_stops_both_at_one_step_from_which_one_process_goes_on(two, capsys):
    longer = (f"--config.total_steps={FAR}", "--config.evaluators.validation.every_steps=0")
    processes = start(two, *longer)
    while not any(line["step"] >= 30 for line in read_metrics(two)):
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    # The same command in the same workdir is refused, and takes nothing away.
    assert programs.call("train", *arguments(two, *longer)) == 2
    assert f"{two} is in use by process {processes[0].pid} on " in capsys.readouterr().err
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = finish(processes)
    assert codes == [75, 75], errors
    saved = max(int(path.name) for path in (two / "checkpoints").iterdir())
    message = f"another process got a signal: step {saved} of {FAR} is saved"
    assert message in errors[0]
    assert "is saved" not in errors[1]
    assert (
        programs.call("train", *arguments(two, f"--config.total_steps={saved + 6}", longer[1])) == 0
    )
    assert sorted(losses(two, "train/loss"))[-1] == saved + 6
