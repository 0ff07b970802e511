"""Runs of the training program that an experiment is made of: one after the other, each once."""

import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from darl_jax.metrics import read_metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class Run(NamedTuple):
    """One call of the training program.

    Attributes:
      name: of its workdir.
      config: a file in configs/.
      overrides: keys of the config with their values, as on the command line.
    """

    name: str
    config: str
    overrides: dict[str, object]


def tell(message: str) -> None:
    """Where progress goes, so that tables can be piped."""
    print(message, file=sys.stderr, flush=True)


def train(run: Run, folder: pathlib.Path, *, program: str = "darl_jax.train") -> pathlib.Path:
    """Trains, unless it has been done, and returns the workdir. Interrupted, it goes on there.

    Raises:
      SystemExit: the program failed.
    """
    workdir = folder / run.name
    if (workdir / "finished").exists():
        return workdir
    began = time.monotonic()
    command = [sys.executable, "-m", program, f"--config={REPOSITORY / 'configs' / run.config}"]
    command += [f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in run.overrides.items()]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"{run.name} ended with exit code {code}: {' '.join(command)}")
    (workdir / "finished").write_text(f"{time.monotonic() - began:.0f} s\n")
    return workdir


def train_all(runs: Sequence[Run], folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Trains all, with an estimate of the time to go from those that were done."""
    workdirs: dict[str, pathlib.Path] = {}
    seconds: list[float] = []
    for i, run in enumerate(runs):
        left = ""
        if seconds:
            left = f", about {sum(seconds) / len(seconds) * (len(runs) - i) / 60:.0f} min to go"
        tell(f"[{i + 1} of {len(runs)}{left}] {run.name}")
        began, done = time.monotonic(), (folder / run.name / "finished").exists()
        workdirs[run.name] = train(run, folder)
        if not done:
            seconds.append(time.monotonic() - began)
    return workdirs


def last_value(workdir: pathlib.Path, name: str) -> float:
    """The last value of a metric that a run wrote.

    Raises:
      SystemExit: it never wrote it.
    """
    values = [line[name] for line in read_metrics(workdir) if name in line]
    if not values:
        sys.exit(f"{workdir} has no {name}")
    return float(values[-1])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
