"""Draws the losses of one or several runs over their steps.

python -m darl_jax.figures.curves runs/digits --output=curves.png
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from darl_jax.figures.program import COLORS, by_name, new_figure, run_program
from darl_jax.monitoring.clock import History
from darl_jax.monitoring.drawing import plain
from darl_jax.monitoring.writers import read_metrics


def loss_figure(runs: Mapping[str, History]) -> Figure:
    """Draws training losses thin and validation losses thick, a color for each run; log scale.

    Raises:
      ValueError: a run has no losses yet.
    """
    figure = new_figure(9.0, 5.0)
    axes = figure.add_subplot()
    for i, (name, history) in enumerate(runs.items()):
        color = COLORS[i % len(COLORS)]
        train, validation = _series(history, "train/loss"), _series(history, "validation/loss")
        if not train[0] and not validation[0]:
            raise ValueError(f"{name}: no losses have been written there yet")
        axes.plot(*train, color=color, linewidth=0.8, alpha=0.5, label=f"{name}, training")
        if validation[0]:
            label = f"{name}, validation: {validation[1][-1]:.4f}"
            axes.plot(*validation, color=color, linewidth=2, marker="o", markersize=3, label=label)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    plain(axes)
    axes.legend(frameon=False)
    return figure


def _series(history: History, name: str) -> tuple[list[int | float], list[int | float]]:
    """Steps and values of a metric."""
    lines = [line for line in history if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def draw(workdirs: Sequence[str]) -> Figure:
    """Draws the losses in the metrics of each workdir."""
    return loss_figure({name: read_metrics(workdir) for name, workdir in by_name(workdirs)})


if __name__ == "__main__":
    usage = "python -m darl_jax.figures.curves runs/digits --output=curves.png"
    run_program(draw, usage, output="curves.png", workdirs=True)
