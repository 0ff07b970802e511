"""Runs of the training program that an experiment is made of, each once."""

import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import NamedTuple

from darl_jax.monitoring.writers import read_metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_DONE = "finished"  # a file in the workdir of each run that has ended


class Run(NamedTuple):
    """One call of the training program.

    Attributes:
      name: of its workdir.
      config: FILE.py or FILE.py:WORD in configs/.
      overrides: keys of the config with their values, as on the command line.
    """

    name: str
    config: str
    overrides: dict[str, object]


def tell(message: str) -> None:
    """Prints progress to standard error, so that tables can be piped."""
    print(message, file=sys.stderr, flush=True)


def flags(run: Run) -> list[str]:
    """The run's config and its overrides on a command line."""
    config = f"--config={REPOSITORY / 'configs' / run.config}"
    return [config, *(f"--config.{key}={value}" for key, value in run.overrides.items())]


def call(program: str, arguments: Sequence[str], log: pathlib.Path) -> None:
    """Runs a program of the package, its output in a file.

    Raises:
      RuntimeError: it failed; the message has the last line of its output.
    """
    command = [sys.executable, "-m", program, *arguments]
    with log.open("w") as output:
        code = subprocess.run(
            command, check=False, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY
        ).returncode
    if code:
        last = log.read_text().strip().splitlines()[-1:]
        raise RuntimeError(f"{program} ended with exit code {code}, see {log}: {''.join(last)}")


def train_all(groups: Sequence[Sequence[Run]], folder: pathlib.Path, *, jobs: int) -> None:
    """Trains what has not been trained, with an estimate of the time to go.

    A run that was interrupted goes on where it was.

    Args:
      groups: the runs of each in this order, several groups at once.
      folder: of the workdirs, and of a log for each.
      jobs: how many runs at once.

    Raises:
      SystemExit: a run failed; no other one is begun.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = [run for group in groups for run in group if not (folder / run.name / _DONE).exists()]
    total, began, failed = len(left), time.monotonic(), False

    def train(group: Sequence[Run]) -> None:
        for run in group:
            if run not in left or failed:
                continue
            tell(f"{run.name} ...")
            arguments = [*flags(run), f"--workdir={folder / run.name}"]
            call("darl_jax.train", arguments, folder / f"{run.name}.log")
            (folder / run.name / _DONE).touch()
            left.remove(run)
            seconds = (time.monotonic() - began) / (total - len(left)) * len(left)
            tell(f"{total - len(left)} of {total} runs done, about {seconds / 60:.0f} min to go")

    with futures.ThreadPoolExecutor(jobs) as pool:
        for done in futures.as_completed([pool.submit(train, group) for group in groups]):
            try:
                done.result()
            except RuntimeError as error:
                failed = True
                tell(f"error: {error}")
    if failed:
        sys.exit(1)


def history(workdir: pathlib.Path) -> Sequence[Mapping[str, int | float]]:
    """Metrics of a run; none before it has begun."""
    return read_metrics(workdir) if (workdir / "metrics.jsonl").exists() else []


def last_value(workdir: pathlib.Path, name: str) -> float:
    """The last value of a metric that a run wrote.

    Raises:
      SystemExit: it never wrote it.
    """
    values = [line[name] for line in history(workdir) if name in line]
    if not values:
        sys.exit(f"{workdir} has no {name}")
    return float(values[-1])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
