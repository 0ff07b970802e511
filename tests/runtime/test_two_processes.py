"""Two processes are one run: the same batches, losses and checkpoints, and one end for both."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.pipeline import train_batches
from darl_jax.monitoring.example_log import read_example_log
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.sharding import MeshConfig, global_array, make_mesh, replicated

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STEPS = 3


def fingerprints() -> list[list[int]]:
    """For each global batch the records in their order and a weighted sum of all pixels."""
    config = ImagesConfig(
        source="digits", image_size=8, channels=1, mean=(0.3,), std=(0.4,), in_memory=True
    )
    mesh = make_mesh(MeshConfig())
    batches = train_batches(
        config.open().train,
        config,
        batch_size=16,
        seed=7,
        start_step=80,  # The third of them runs over the end of the first epoch of 1297 images.
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

    def fingerprint(image, index):
        pixels = image.reshape(-1).astype(jnp.int32)
        return jnp.append(index.astype(jnp.int32), jnp.sum(pixels * jnp.arange(pixels.size)))

    with batches:
        arrays = [global_array(dict(next(batches)), mesh) for _ in range(STEPS)]
    read = jax.jit(fingerprint, out_shardings=replicated(mesh))
    return [np.asarray(read(a["image"], a["index"])).tolist() for a in arrays]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def test_two_processes_make_the_global_batches_of_one():
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, address, str(i)], stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # Gloo greets on the same stream.
    last_lines = [output.splitlines()[-1] for output in outputs]
    assert last_lines == [str(fingerprints())] * 2


def start(
    workdir, process_count: int, *arguments: str, last: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """A run of darl_jax.train on digits; `last` are further arguments of the last process alone."""
    cluster = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": str(process_count)}
    command = [
        sys.executable, "-m", "darl_jax.train", "--config=configs/digits.py:mse",
        f"--workdir={workdir}", "--config.batch_size=32", "--config.model.width=32",
        "--config.model.depth=2", "--config.total_steps=24", "--config.log_every_steps=6",
        "--config.log_examples=True", "--config.checkpoint.every_steps=6",
        "--config.evaluators.validation.every_steps=12", "--config.evaluators.probe.every_steps=0",
        *arguments,
    ]  # fmt: skip
    return [
        subprocess.Popen(
            [*command, *(last if i == process_count - 1 else ())],
            cwd=REPOSITORY,
            env=os.environ | cluster | {"JAX_PROCESS_ID": str(i), "JAX_PLATFORMS": "cpu"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(process_count)
    ]


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    errors = [process.communicate(timeout=200)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    codes, errors = finish(start(workdir, 1))
    assert codes == [0], errors
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes."""
    workdir = tmp_path_factory.mktemp("two")
    codes, errors = finish(start(workdir, 2))
    assert codes == [0, 0], errors
    return workdir


@pytest.fixture(scope="module")
def stopped(two):
    """That run made longer, until one of its processes alone was asked to stop."""
    processes = start(
        two, 2, "--config.total_steps=4000", "--config.evaluators.validation.every_steps=2000"
    )
    while not any(line["step"] >= 30 for line in read_metrics(two)):
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    return two, *finish(processes)


def losses(workdir, name: str) -> dict[int, float]:
    return {line["step"]: line[name] for line in read_metrics(workdir) if name in line}


def test_losses_of_two_processes_are_those_of_one(one, two):
    for name in ("train/loss", "validation/loss"):
        assert len(losses(one, name)) >= 2
        assert losses(two, name) == pytest.approx(losses(one, name), rel=1e-5)


def test_all_processes_stop_at_the_step_that_one_was_asked_at(stopped):
    workdir, codes, errors = stopped
    assert codes == [75, 75], errors
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"another process was told to stop: saved step {saved} of 4000" in errors[0]
    assert "saved step" not in errors[1]
    log = read_example_log(workdir)
    assert sorted(log) == list(range(1, saved + 1))


def test_run_of_two_processes_goes_on_as_one_with_the_same_records(one, stopped):
    workdir = stopped[0]
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    codes, errors = finish(start(workdir, 1, f"--config.total_steps={saved + 50}"))
    assert codes == [0], errors
    assert f"Goes on from step {saved}" in errors[0]
    log = read_example_log(workdir)
    assert sorted(log) == list(range(1, saved + 51))
    stream = [record for step in sorted(log) for record in log[step]]
    assert sorted(stream[:1297]) == list(range(1297))
    assert [log[step] for step in range(1, 25)] == [read_example_log(one)[s] for s in range(1, 25)]


def test_bad_input_is_told_by_one_process_and_ends_both(tmp_path):
    codes, errors = finish(start(tmp_path, 2, "--config.batch_size=33"))
    assert codes == [2, 2]
    assert sum("error: " in error for error in errors) == 1
    assert "config.batch_size=33 must be a multiple of 2" in "".join(errors)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("--config.log_every_steps=7", "processes [1] have other keys of the config, or records,"),
        ("--workdir={}", "processes [1] do not see process 0's --workdir="),
        ("--config.mesh.tensor=2", "joins devices of several processes"),
    ],
)
def test_processes_that_would_wait_for_each_other_for_ever_are_refused(tmp_path, other, message):
    elsewhere = other.format(tmp_path / "elsewhere")
    both = (elsewhere, "--config.mesh.data=1") if "tensor" in other else ()
    codes, errors = finish(start(tmp_path, 2, *both, last=() if both else (elsewhere,)))
    assert codes == [2, 2]
    assert message in "".join(errors)
    assert not (tmp_path / "checkpoints").exists()


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
    print(fingerprints())
