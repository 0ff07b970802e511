"""Draws accuracy over the noise schedule's (a, b) from a set of runs (Figure 3).

python -m darl_jax.figures.schedule_sweep runs/a003 runs/a01 runs/a1 --output=sweep.png

A run of fine-tuning or of probes counts for the schedule of the pre-training run that it began
from, which must still be where `config.init.checkpoint` says.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darl_jax.checkpoint import restore_params
from darl_jax.cli import EXIT_BAD_INPUT, USER_ERRORS, one_line_errors
from darl_jax.metrics import read_metrics

_METRIC = "validation/accuracy"


class Point(NamedTuple):
    """One run: its schedule Beta(a, b), and the last value of the metric."""

    a: float
    b: float
    value: float


def read_point(workdir: str, metric: str) -> Point:
    """A run's schedule and its last value of a metric.

    Raises:
      ValueError: it wrote no such metric, or was not pre-trained by diffusion with a Beta schedule.
      FileNotFoundError: there is no such run.
    """
    lines = read_metrics(workdir)
    values = [line[metric] for line in lines if metric in line]
    if not values:
        names = sorted({name for line in lines for name in line if "/" in name})
        raise ValueError(f"{workdir} has no metric {metric!r}; it has {', '.join(names)}")
    config: Mapping[str, Any] = restore_params(workdir)[1]
    beginning = config["init"]["checkpoint"]
    if beginning:
        config = restore_params(beginning)[1]
    schedule = config["objective"].get("schedule", {})
    if schedule.get("name") != "beta":
        raise ValueError(
            f"{beginning or workdir} was not trained by diffusion with objective.schedule.name="
            "'beta'"
        )
    return Point(float(schedule["a"]), float(schedule["b"]), float(values[-1]))


def sweep_figure(points: Sequence[Point], metric: str) -> Figure:
    """The metric over a, a line for each b."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for b in sorted({point.b for point in points}):
        line = sorted(point for point in points if point.b == b)
        axes.plot([p.a for p in line], [p.value for p in line], marker="o", label=f"b = {b:g}")
    axes.set(xscale="log", xlabel="a of γ ~ Beta(a, b); more noise to the left", ylabel=metric)
    axes.grid(which="both", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main(argv: Sequence[str]) -> None:
    """Prints a line for each run and writes one picture."""
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        if len(argv) < 2:
            raise ValueError("name one workdir or several, as in runs/a003 runs/a1")
        metric = flags.FLAGS.metric
        points = [read_point(path, metric) for path in argv[1:]]
        for path, point in zip(argv[1:], points, strict=True):
            print(f"a={point.a:g} b={point.b:g} {metric}={point.value:.4f} {path}")
        sweep_figure(points, metric).savefig(flags.FLAGS.output, dpi=110)
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("metric", _METRIC, "A name in the runs' metrics.jsonl.")
    flags.DEFINE_string("output", "sweep.png", "The picture's file, a PNG.")
    app.run(main)
