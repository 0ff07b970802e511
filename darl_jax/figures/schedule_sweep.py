"""Draws accuracy over the (a, b) of Beta noise schedules from a set of runs (Figure 3).

python -m darl_jax.figures.schedule_sweep runs/a003 runs/a01 runs/a1 --output=sweep.png

The schedule of a fine-tuning or probe run is that of the pre-training run it was initialized from,
which must still be at `config.init.checkpoint`. The table goes to the terminal.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darl_jax.figures.program import COLORS, by_name, new_figure, run_program
from darl_jax.monitoring.drawing import plain
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_config


class Point(NamedTuple):
    """Schedule Beta(a, b) of a run, and its last value of the metric."""

    run: str
    a: float
    b: float
    value: float


def read_point(name: str, workdir: str, metric: str) -> Point:
    """Reads a run's schedule and its last value of a metric.

    Raises:
      ValueError: the run has no such metric, or no Beta schedule.
      FileNotFoundError: the run or the one it was initialized from does not exist.
    """
    a, b = schedule_of(workdir)
    lines = read_metrics(workdir)
    values = [float(line[metric]) for line in lines if metric in line]
    if not values:
        names = sorted({name for line in lines for name in line if "/" in name})
        raise ValueError(
            f"{workdir} has no metric {metric!r}; there are: {', '.join(names) or 'none'}"
        )
    return Point(name, a, b, values[-1])


def schedule_of(workdir: str) -> tuple[float, float]:
    """(a, b) of a run's schedule, or of the run that its backbone was initialized from.

    Raises:
      ValueError: there is no Beta schedule.
      FileNotFoundError: a checkpoint does not exist.
    """
    config = restore_config(workdir)
    seen = workdir
    while "schedule" not in config["objective"] and config["init"]["checkpoint"]:
        beginning, step = config["init"]["checkpoint"], config["init"]["step"]
        try:
            config = restore_config(beginning, step)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{seen} began from {beginning}, whose schedule is not known: {error}"
            ) from error
        seen = beginning
    objective = config["objective"]
    schedule = objective.get("schedule")
    if schedule is None:
        raise ValueError(f"{seen} was trained with objective.name={objective['name']!r}, not noise")
    if schedule["name"] != "beta":
        raise ValueError(
            f"{seen} was trained with objective.schedule.name={schedule['name']!r}, which has no "
            "a and b; 'beta' has"
        )
    return float(schedule["a"]), float(schedule["b"])


def table(points: Sequence[Point], metric: str) -> str:
    """Formats a row for each run, sorted by a and b."""
    rows = [("a", "b", metric, "run")]
    rows += [
        (f"{a:g}", f"{b:g}", f"{value:.4f}", name)
        for name, a, b, value in sorted(points, key=lambda point: (point.a, point.b, point.run))
    ]
    a, b, value = (max(map(len, column)) for column in [*zip(*rows, strict=True)][:3])
    return "\n".join(f"{r[0]:>{a}}   {r[1]:>{b}}   {r[2]:>{value}}   {r[3]}" for r in rows)


def sweep_figure(points: Sequence[Point], metric: str) -> Figure:
    """Draws a map over (a, b) if both vary, else a line; runs of one (a, b) are averaged."""
    values: dict[tuple[float, float], list[float]] = {}
    for point in points:
        values.setdefault((point.a, point.b), []).append(point.value)
    means = {at: float(np.mean(each)) for at, each in sorted(values.items())}
    figure = new_figure(7.0, 4.8)
    axes = figure.add_subplot()
    if all(len(set(each)) > 1 for each in zip(*means, strict=True)):
        _draw_map(axes, means, metric)
    else:
        _draw_line(axes, means, metric)
    return figure


def _draw_map(axes: Axes, means: dict[tuple[float, float], float], metric: str) -> None:
    """Draws a cell for each (a, b), blank without a run; values of a and b are equally spaced."""
    a_s, b_s = (sorted(set(each)) for each in zip(*means, strict=True))
    cells = np.full((len(b_s), len(a_s)), np.nan)
    for (a, b), mean in means.items():
        cells[b_s.index(b), a_s.index(a)] = mean
    shown = axes.imshow(cells, cmap="viridis", origin="lower", aspect="auto")
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    for (row, column), mean in np.ndenumerate(cells):
        if np.isfinite(mean):
            color = "white" if mean < middle else "black"
            axes.text(column, row, f"{mean:.4g}", ha="center", va="center", color=color, size=9)
    axes.set_xticks(range(len(a_s)), [f"{a:g}" for a in a_s])
    axes.set_yticks(range(len(b_s)), [f"{b:g}" for b in b_s])
    axes.set(xlabel="a of γ ~ Beta(a, b)", ylabel="b")
    axes.figure.colorbar(shown, ax=axes, label=metric)


def _draw_line(axes: Axes, means: dict[tuple[float, float], float], metric: str) -> None:
    a_s, b_s = zip(*means, strict=True)
    if len(set(b_s)) == 1:
        x, name, label = a_s, "a", f"b = {b_s[0]:g}"
    else:
        x, name, label = b_s, "b", f"a = {a_s[0]:g}"
    axes.plot(x, [*means.values()], marker="o", color=COLORS[0], label=label)
    noise = "left" if name == "a" else "right"
    axes.set(xscale="log", xlabel=f"{name} of γ ~ Beta(a, b); more noise to the {noise}")
    axes.set_ylabel(metric)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    plain(axes)
    axes.legend(frameon=False)


def draw(workdirs: Sequence[str], *, metric: str) -> Figure:
    """Draws the metric over the runs' schedules, and prints the table."""
    points = [read_point(name, workdir, metric) for name, workdir in by_name(workdirs)]
    print(table(points, metric))
    return sweep_figure(points, metric)


if __name__ == "__main__":
    run_program(
        draw,
        "python -m darl_jax.figures.schedule_sweep runs/a003 runs/a01 --output=sweep.png",
        output="sweep.png",
        workdirs=True,
        metric=flags.DEFINE_string(
            "metric", "validation/accuracy", "Name of a metric in the runs' metrics.jsonl."
        ),
    )
