"""Draws the losses of one or several runs over their steps.

python -m darl_jax.figures.curves runs/digits --output=curves.png
"""

import pathlib
from collections.abc import Mapping, Sequence

from absl import app, flags
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darl_jax.cli import EXIT_BAD_INPUT, one_line_errors
from darl_jax.metrics import read_metrics

_COLORS = ("#0b6e99", "#c2410c", "#4d7c0f", "#7e22ce", "#a16207", "#be185d")

History = Sequence[Mapping[str, int | float]]
Series = tuple[list[int], list[float]]


def series(history: History, name: str) -> Series:
    """Steps and values of one metric in a history, as `read_metrics` returns it."""
    lines = [line for line in history if name in line]
    return [int(line["step"]) for line in lines], [float(line[name]) for line in lines]


def loss_figure(runs: Mapping[str, History]) -> Figure:
    """Training loss thin and validation loss thick, a colour for each run; the loss axis is a log.

    Raises:
      ValueError: a run has no losses yet.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (name, history) in enumerate(runs.items()):
        color = _COLORS[i % len(_COLORS)]
        train, validation = series(history, "train/loss"), series(history, "validation/loss")
        if not train[0] and not validation[0]:
            raise ValueError(f"{name}: no losses have been written there yet")
        axes.plot(*train, color=color, linewidth=0.8, alpha=0.5, label=f"{name}, training")
        if validation[0]:
            label = f"{name}, validation: {validation[1][-1]:.4f}"
            axes.plot(*validation, color=color, linewidth=2, marker="o", markersize=3, label=label)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.grid(which="both", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main(argv: Sequence[str]) -> None:
    """Reads each workdir's metrics and writes one picture."""
    with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
        if len(argv) < 2:
            raise ValueError("name one workdir or several, as in runs/digits")
        runs = {pathlib.PurePath(workdir).name: read_metrics(workdir) for workdir in argv[1:]}
        loss_figure(runs).savefig(flags.FLAGS.output, dpi=110)
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    # Not where this module is imported: programs have flags of their own.
    flags.DEFINE_string("output", "curves.png", "The picture's file, a PNG.")
    app.run(main)
