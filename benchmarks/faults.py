"""Ends the processes of a run in every way, and checks that nothing else is lost.

    python benchmarks/faults.py chaos --faults=50 --processes=2 --folder=/tmp/chaos
    python benchmarks/faults.py exit --trials=20 --processes=2 --folder=/tmp/exit

`chaos` trains a small model on digits under the supervisor of launch/local.py, which restarts all
processes whenever one ends, and ends them at random: kill -9 of any, SIGTERM to one or to all,
while they start, train or save. Afterwards every array of the last checkpoint must have the bits of
an undisturbed run's. The trainers run in this program, which notes the records of every batch: a
step that two attempts took must have had the same records, and each epoch each record exactly once.

`exit` measures the seconds from a fault to the exit of the last process, for an exception in one,
kill -9 of the coordinator (process 0) and kill -9 of a worker.

The exit code is 1 where a promise is broken. On 2 cores a fault of `chaos` takes a quarter of a
minute, a trial of `exit` half a minute.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import psutil

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
RECORDS, BATCH = 1297, 32  # of digits' training split
LONGEST_EXIT = 15.0  # seconds
STARTUP = 20.0  # seconds; the random moments of faults at "any time" lie within


def trainer_arguments(workdir: pathlib.Path, steps: int) -> list[str]:
    """Command line of a run whose steps take milliseconds and which saves all the time."""
    return [
        sys.executable, __file__, "trainer",
        f"--config={REPOSITORY / 'configs' / 'digits.py'}:mse", f"--workdir={workdir}",
        f"--config.total_steps={steps}", f"--config.batch_size={BATCH}",
        "--config.model.width=32", "--config.model.depth=2", "--config.log_every_steps=10",
        "--config.checkpoint.every_steps=5", "--config.evaluators.validation.every_steps=50",
        "--config.evaluators.pictures.every_steps=0", "--config.evaluators.probe.every_steps=0",
    ]  # fmt: skip


def log_size(workdir: pathlib.Path) -> int:
    """Bytes of the log of records: it grows while steps are done."""
    return sum(path.stat().st_size for path in workdir.glob("records/*.jsonl"))


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Arrays of a checkpoint by name, through Orbax alone."""
    path = workdir / "checkpoints" / str(step) / "state"
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(path).tree
        as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
        restore_args = ocp.utils.jax.tree.map(lambda _: as_numpy, tree)
        restored = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    leaves, _ = ocp.utils.jax.tree_util.tree_flatten_with_path(restored)
    return {ocp.utils.jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


# --- chaos ---------------------------------------------------------------------------------------


def chaos(arguments: argparse.Namespace) -> bool:
    """Runs, disturbs and compares; returns whether all promises were kept."""
    steps = 30 * arguments.faults
    runs = {name: arguments.folder / name for name in ("undisturbed", "disturbed")}
    for workdir in runs.values():
        shutil.rmtree(workdir, ignore_errors=True)
    with launcher(runs["undisturbed"], steps, arguments) as process:
        if process.wait() != 0:
            print(f"the undisturbed run failed: see {runs['undisturbed']}.log")
            return False
    done = disturb(runs["disturbed"], steps, arguments)
    if done is None:
        return False
    print(f"\n{'fault':28}{'moment':14}times")
    for (fault, moment), times in sorted(collections.Counter(done).items()):
        print(f"{fault:28}{moment:14}{times}")
    kept = same_bits(*(arrays(workdir, steps) for workdir in runs.values()))
    return exactly_once(runs["disturbed"], steps) and kept


@contextlib.contextmanager
def launcher(
    workdir: pathlib.Path, steps: int, arguments: argparse.Namespace
) -> Iterator[subprocess.Popen[bytes]]:
    """Supervised trainers, their output in a file beside the workdir."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{workdir}.log", "ab") as log:
        process = subprocess.Popen(
            [
                sys.executable, __file__, "supervisor", str(arguments.processes),
                str(2 * arguments.faults), *trainer_arguments(workdir, steps),
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def disturb(
    workdir: pathlib.Path, steps: int, arguments: argparse.Namespace
) -> list[tuple[str, str]] | None:
    """Sends all faults, one after the other; returns them, or None where the run failed."""
    generator = random.Random(arguments.seed)
    done: list[tuple[str, str]] = []
    seen: set[int] = set()
    began = time.monotonic()
    with launcher(workdir, steps, arguments) as process:
        while len(done) < arguments.faults:
            processes = new_processes(process, arguments.processes, seen)
            if processes is None:
                print(f"the run ended after {len(done)} faults: see {workdir}.log")
                return None
            seen |= {trainer.pid for trainer in processes}
            moment = generator.choice(("any time", "training", "saving", "saving"))
            wait_for(moment, workdir, generator, process)
            done.append((send_fault(processes, generator), moment))
            passed = time.monotonic() - began
            print(
                f"fault {len(done)} of {arguments.faults}: {done[-1][0]}, {moment}; "
                f"{passed:.0f} s, "
                f"{passed / len(done) * (arguments.faults - len(done)):.0f} s to go",
                flush=True,
            )
        if process.wait() != 0:
            print(f"the disturbed run failed: see {workdir}.log")
            return None
    return done


def new_processes(
    process: subprocess.Popen[bytes], count: int, seen: set[int]
) -> list[psutil.Process] | None:
    """Next set of trainers by their index; None where the launcher has ended."""
    while process.poll() is None:
        with contextlib.suppress(psutil.Error, KeyError):
            found = {
                int(child.environ()["JAX_PROCESS_ID"]): child
                for child in psutil.Process(process.pid).children()
                if child.pid not in seen and child.status() != psutil.STATUS_ZOMBIE
            }
            if len(found) == count:
                return [found[index] for index in range(count)]
        time.sleep(0.02)
    return None


def wait_for(
    moment: str,
    workdir: pathlib.Path,
    generator: random.Random,
    process: subprocess.Popen[bytes],
) -> None:
    """Waits for the moment of a fault, or the end of the launcher."""
    if moment == "any time":
        time.sleep(generator.uniform(0.0, STARTUP))
        return
    size = log_size(workdir)
    while process.poll() is None and log_size(workdir) <= size + 100:
        time.sleep(0.01)
    time.sleep(generator.uniform(0.0, 3.0))
    if moment == "saving":
        while process.poll() is None and not any(
            "tmp" in path.name for path in (workdir / "checkpoints").iterdir()
        ):
            time.sleep(0.001)
        time.sleep(generator.uniform(0.0, 0.05))


def send_fault(processes: list[psutil.Process], generator: random.Random) -> str:
    """Sends SIGKILL to one process, or SIGTERM to one or all; returns the fault in words."""
    number = generator.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    index = generator.randrange(len(processes) + (number == signal.SIGTERM))
    chosen = processes if index == len(processes) else [processes[index]]
    for trainer in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            trainer.send_signal(number)
    return f"{number.name} of {'all' if len(chosen) > 1 else f'process {index}'}"


def same_bits(expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> bool:
    """Whether two states are the same, said in a line."""
    different = [
        name
        for name in sorted(expected.keys() | found.keys())
        if name not in expected
        or name not in found
        or expected[name].tobytes() != found[name].tobytes()
    ]
    print(f"arrays of the last checkpoint: {len(expected)}; with other bits: {different or 'none'}")
    return not different


def exactly_once(workdir: pathlib.Path, steps: int) -> bool:
    """Whether each whole epoch holds each record exactly once, said in a line."""
    parts: dict[int, dict[int, list[int]]] = collections.defaultdict(dict)
    noted = 0
    for path in sorted(workdir.glob("records/*.jsonl")):
        index = int(path.stem)
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            noted += 1
            if parts[entry["step"]].setdefault(index, entry["records"]) != entry["records"]:
                print(f"step {entry['step']} was done with other records by another attempt")
                return False
    missing = [step for step in range(1, steps + 1) if step not in parts]
    if missing:
        print(f"steps that no process noted: {missing[:10]}")
        return False
    rows = [parts[step][index] for step in range(1, steps + 1) for index in sorted(parts[step])]
    stream = np.concatenate(rows)
    whole = len(stream) // RECORDS
    epochs = np.sort(stream[: whole * RECORDS].reshape(whole, RECORDS), axis=1)
    wrong = np.flatnonzero((epochs != np.arange(RECORDS)).any(axis=1)).tolist()
    print(
        f"whole epochs: {whole} of {RECORDS} records; without each exactly once: {wrong or 'none'}"
        f"; batches noted by all attempts: {noted}, for {len(rows)} that the run consists of"
    )
    return not wrong


# --- exit ----------------------------------------------------------------------------------------


def exits(arguments: argparse.Namespace) -> bool:
    """Measures the exits; returns whether all were quick enough."""
    faults = {
        "exception in process 1": (1, signal.SIGUSR1),
        "kill -9 of process 0": (0, signal.SIGKILL),
        "kill -9 of process 1": (1, signal.SIGKILL),
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    worst: dict[str, list[float]] = collections.defaultdict(list)
    for trial in range(arguments.trials):
        for name, (index, number) in faults.items():
            worst[name].append(time_exit(arguments, index, number))
            print(
                f"trial {trial + 1} of {arguments.trials}: {name}: {worst[name][-1]:.1f} s",
                flush=True,
            )
    print(f"\n{'fault':28}{'median':>8}{'worst':>8}   seconds until the last process had ended")
    for name, seconds in worst.items():
        print(f"{name:28}{np.median(seconds):8.1f}{max(seconds):8.1f}")
    return all(max(seconds) <= LONGEST_EXIT for seconds in worst.values())


def time_exit(arguments: argparse.Namespace, index: int, number: signal.Signals) -> float:
    """Seconds from a signal to process `index` until no process is left."""
    workdir = arguments.folder / "run"
    for part in ("checkpoints", "records"):
        shutil.rmtree(workdir / part, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    processes = []
    for i in range(arguments.processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(arguments.processes),
            "JAX_PROCESS_ID": str(i),
        }
        with open(arguments.folder / f"process_{i}.log", "wb") as log:
            processes.append(
                subprocess.Popen(
                    trainer_arguments(workdir, 10**6),
                    env=environment, stdout=log, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    while log_size(workdir) < 1000:
        if any(process.poll() is not None for process in processes):
            sys.exit(f"a process ended before the fault: see {arguments.folder}/process_*.log")
        time.sleep(0.05)
    time.sleep(random.uniform(0.0, 1.0))
    began = time.monotonic()
    processes[index].send_signal(number)
    codes = [process.wait() for process in processes]
    seconds = time.monotonic() - began
    if 0 in codes:
        sys.exit(f"a process took the fault for the end of the run: exit codes {codes}")
    return seconds


def trainer(arguments: list[str]) -> None:
    """Runs darl_jax.train, which notes its records; SIGUSR1 raises an exception in it."""
    from darl_jax.data import pipeline

    def fail(*_: object) -> None:
        raise RuntimeError("an exception that nobody expects")

    signal.signal(signal.SIGUSR1, fail)
    workdir = next(word.split("=")[1] for word in arguments if word.startswith("--workdir="))
    folder = pathlib.Path(workdir) / "records"
    train_batches = pipeline.train_batches

    def noting(*positional: Any, **named: Any) -> "Noted":
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{named['process_index']}.jsonl"
        return Noted(train_batches(*positional, **named), named["start_step"], path)

    pipeline.train_batches = noting  # type: ignore[assignment]
    sys.argv = ["darl_jax.train", *arguments]
    runpy.run_module("darl_jax.train", run_name="__main__")


class Noted:
    """Batches of one process, whose records go to a file before the step is done."""

    def __init__(self, batches: Any, start_step: int, path: pathlib.Path):
        self._batches = batches
        self._step = start_step
        self._path = path

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._step += 1
        line = json.dumps({"step": self._step, "records": np.asarray(batch["index"]).tolist()})
        with open(self._path, "a") as file:
            file.write(line + "\n")
        return batch

    def close(self) -> None:
        """Ends the workers."""
        self._batches.close()


def main() -> None:
    if sys.argv[1:2] == ["trainer"]:
        trainer(sys.argv[2:])
        return
    if sys.argv[1:2] == ["supervisor"]:
        sys.path.insert(0, str(REPOSITORY))
        from launch import processes

        processes_count, restarts = int(sys.argv[2]), int(sys.argv[3])
        sys.exit(processes.supervise(sys.argv[4:], processes_count, restarts, print))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("chaos", "exit"))
    parser.add_argument("--faults", type=int, default=50, help="chaos: how many")
    parser.add_argument("--trials", type=int, default=20, help="exit: how many of each kind")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="chaos: of the faults")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="for workdirs and logs")
    arguments = parser.parse_args()
    sys.exit(0 if {"chaos": chaos, "exit": exits}[arguments.what](arguments) else 1)


if __name__ == "__main__":
    main()
