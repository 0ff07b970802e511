"""Draws the distribution of gamma for each noise schedule (Figures 2 and 9).

python -m darl_jax.figures.schedules --output=schedules.png
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darl_jax.figures.program import COLORS, new_figure, run_program
from darl_jax.methods.darl.schedules import FUNCTIONS, Beta, Schedule
from darl_jax.monitoring.drawing import plain

BETAS = ((0.03, 1.0), (0.1, 1.0), (0.5, 1.0), (1.0, 1.0), (2.0, 5.0), (1.0, 10.0))
_BINS = 50
_POINTS = 200_001  # of u; shares of bins are exact to 1e-5


def shares(schedule: Schedule) -> Float[np.ndarray, f"{_BINS}"]:
    """Probability of each of _BINS equal bins of [0, 1], from the quantile function."""
    u = (np.arange(_POINTS) + 0.5) / _POINTS
    counts, _ = np.histogram(schedule.quantile(u), bins=_BINS, range=(0.0, 1.0))
    return counts / _POINTS


def schedules_figure() -> Figure:
    """Draws Beta distributions on the left, and the paper's default beside other schedules."""
    figure = new_figure(11.0, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_title("Beta(a, b)")
    _draw(left, {f"a = {a:g}, b = {b:g}": Beta(a, b) for a, b in BETAS})
    right.set_title("Compared with other schedules")
    names = {"ddpm": "DDPM", "linear": "linear (l-DAE)"}
    others = {names.get(name, name): schedule for name, schedule in FUNCTIONS.items()}
    _draw(right, {"Beta(0.03, 1)": Beta(0.03, 1.0), **others})
    left.set_ylabel(f"probability of a {100 / _BINS:g}% wide part")
    return figure


def _draw(axes: Axes, schedules: Mapping[str, Schedule]) -> None:
    edges = np.linspace(0.0, 1.0, _BINS + 1)
    for (label, schedule), color in zip(schedules.items(), COLORS, strict=False):
        axes.stairs(shares(schedule), edges, baseline=None, color=color, linewidth=1.4, label=label)
    axes.set(xlabel="γ: 0 is noise alone, 1 the clean patch", yscale="log", ylim=(1e-4, 1.0))
    axes.margins(x=0.02)
    plain(axes)
    axes.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    usage = "python -m darl_jax.figures.schedules --output=schedules.png"
    run_program(schedules_figure, usage, output="schedules.png")
