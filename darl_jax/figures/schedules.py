"""Draws the noise schedules: how gamma is distributed (Figures 2 and 9).

python -m darl_jax.figures.schedules --output=schedules.png
"""

from collections.abc import Sequence

import numpy as np
from absl import app, flags
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darl_jax.cli import EXIT_BAD_INPUT, one_line_errors
from darl_jax.diffusion.schedules import FUNCTIONS, Beta, Schedule

BETAS = ((0.03, 1.0), (0.1, 1.0), (0.5, 1.0), (1.0, 1.0), (2.0, 5.0), (1.0, 10.0))
_BINS = 50
_POINTS = 200_001  # of u; the shares of bins are then exact to 1e-5


def shares(schedule: Schedule) -> Float[np.ndarray, f"{_BINS}"]:
    """The probability of each of _BINS equal parts of [0, 1], from the quantile function."""
    u = (np.arange(_POINTS) + 0.5) / _POINTS
    counts, _ = np.histogram(schedule.quantile(u), bins=_BINS, range=(0.0, 1.0))
    return counts / _POINTS


def schedules_figure() -> Figure:
    """Beta distributions on the left, and the paper's default beside other schedules."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_title("Beta(a, b)")
    for a, b in BETAS:
        _draw(left, Beta(a, b), f"a = {a:g}, b = {b:g}")
    right.set_title("Beside other schedules")
    _draw(right, Beta(0.03, 1.0), "Beta(0.03, 1)")
    for name, schedule in FUNCTIONS.items():
        _draw(right, schedule, {"ddpm": "DDPM", "linear": "linear (l-DAE)"}.get(name, name))
    left.set_ylabel(f"probability of a {100 / _BINS:g}% wide part")
    return figure


def _draw(axes: Axes, schedule: Schedule, label: str) -> None:
    middles = (np.arange(_BINS) + 0.5) / _BINS
    axes.plot(middles, shares(schedule), drawstyle="steps-mid", linewidth=1.4, label=label)
    axes.set(xlabel="γ: 0 is noise alone, 1 the clean patch", yscale="log", ylim=(1e-4, 1.0))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def main(argv: Sequence[str]) -> None:
    """Writes one picture."""
    with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
        if len(argv) > 1:
            raise ValueError(f"{' '.join(argv[1:])} is not understood; there is --output=FILE")
        schedules_figure().savefig(flags.FLAGS.output, dpi=100)
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "schedules.png", "The picture's file, a PNG.")
    app.run(main)
