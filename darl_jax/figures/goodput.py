"""Draws the wall time of a run by category, over all its attempts, and prints a table of it.

python -m darl_jax.figures.goodput runs/digits --output=goodput.png
"""

import datetime
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darl_jax.figures.program import new_figure, run_program
from darl_jax.monitoring.clock import ATTEMPT, CATEGORIES, SHARE, History, seconds_key
from darl_jax.monitoring.writers import read_metrics

_COLORS = {
    "productive": "#0b6e99",
    "input": "#ea580c",
    "evaluation": "#94a3b8",
    "checkpoint": "#65a30d",
    "compile": "#7e22ce",
    "startup": "#eab308",
    "lost": "#be123c",
}
_MAX_BINS = 150
_MAX_LABELS = 8  # attempts


def timeline(history: History) -> tuple[Float[np.ndarray, "point category"], list[float]]:
    """Accumulates the seconds in each category by each line of a history.

    Returns:
      Seconds in each of CATEGORIES at the start of the run, at each line, and at the start of each
      later attempt; and these starts, in seconds since the run's.

    Raises:
      ValueError: the history has no goodput.
    """
    points, starts, attempt = [[0.0] * len(CATEGORIES)], [], None
    for line in history:
        if SHARE not in line:
            continue
        seconds = [float(line[seconds_key(category)]) for category in CATEGORIES]
        if attempt is not None and line[ATTEMPT] > attempt:
            # First the lost time, then the new attempt's own.
            points.append([*points[-1][:-1], seconds[-1]])
            starts.append(sum(points[-1]))
        attempt = line[ATTEMPT]
        points.append(seconds)
    if attempt is None:
        raise ValueError("no goodput has been written there yet")
    return np.array(points), starts


def table(name: str, history: History) -> str:
    """Formats the seconds in each category. Raises ValueError as `timeline`."""
    points, starts = timeline(history)
    wall = points[-1].sum()
    lines = [f"{name}: {_attempts(starts)}, {_duration(wall)} since the first began"]
    for category, spent in zip(CATEGORIES, points[-1], strict=True):
        lines.append(
            f"  {category:<11}{spent / wall:>6.1%} {_duration(spent):>{len(_duration(wall))}}"
        )
    return "\n".join(lines)


def goodput_figure(name: str, history: History) -> Figure:
    """Draws the run's shares in one bar, and below over time. Raises ValueError as `timeline`."""
    points, starts = timeline(history)
    wall, share = points[-1].sum(), points[-1][0] / points[-1].sum()
    figure = new_figure(9.0, 4.8)
    total, over_time = figure.subplots(2, 1, height_ratios=(1, 5))
    left = 0.0
    for category, spent in zip(CATEGORIES, points[-1], strict=True):
        label = f"{category} {spent / wall:.1%}\n{_duration(spent)}"
        total.barh(0, spent / wall, left=left, color=_COLORS[category], label=label)
        left += spent / wall
    total.set_xlim(0, 1)
    total.set_axis_off()
    total.set_title(f"{name}: {share:.1%} of {_duration(wall)} productive, {_attempts(starts)}")
    _draw_over_time(over_time, points, starts)
    handles, labels = total.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _draw_over_time(
    axes: Axes, seconds: Float[np.ndarray, "point category"], starts: Sequence[float]
) -> None:
    scale, unit = _unit(seconds[-1].sum())
    edges, shares = _shares_over_time(seconds)
    edges = edges / scale
    below = np.zeros(len(shares))
    for category, share in zip(CATEGORIES, shares.T, strict=True):
        color = _COLORS[category]
        axes.bar(edges[:-1], share, np.diff(edges), below, align="edge", color=color)
        below += share
    for number, start in enumerate(starts, start=2):
        axes.axvline(start / scale, color="black", linewidth=0.8, linestyle=":")
        if len(starts) < _MAX_LABELS:
            at, coords = (start / scale, 1), ("data", "axes fraction")
            axes.annotate(f" attempt {number}", at, xycoords=coords, va="bottom", size="small")
    axes.set(xlim=(0, edges[-1]), ylim=(0, 1))
    axes.set(xlabel=f"{unit} since the run first began", ylabel="share of the time")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)


def _shares_over_time(
    seconds: Float[np.ndarray, "point category"],
) -> tuple[Float[np.ndarray, " edge"], Float[np.ndarray, "bin category"]]:
    """Shares from point to point, or in _MAX_BINS equal parts of the time if points are many."""
    walls = seconds.sum(axis=1)
    later = np.diff(walls, prepend=-1.0) > 0
    walls, seconds = walls[later], seconds[later]
    edges = walls if len(walls) <= _MAX_BINS else np.linspace(0, walls[-1], _MAX_BINS + 1)
    at_edges = np.stack([np.interp(edges, walls, column) for column in seconds.T], axis=1)
    return edges, np.diff(at_edges, axis=0) / np.diff(edges)[:, None]


def _unit(seconds: float) -> tuple[float, str]:
    for scale, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds > 2 * scale:
            return scale, unit
    return 1.0, "seconds"


def _attempts(later_starts: Sequence[float]) -> str:
    return f"{len(later_starts) + 1} attempts" if later_starts else "1 attempt"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(float(seconds))))


def draw(workdirs: Sequence[str]) -> Figure:
    """Draws a workdir's run and prints its table. Raises ValueError for several workdirs."""
    if len(workdirs) != 1:
        raise ValueError(f"name one workdir, not {len(workdirs)}")
    name, history = pathlib.PurePath(workdirs[0]).name, read_metrics(workdirs[0])
    print(table(name, history))
    return goodput_figure(name, history)


if __name__ == "__main__":
    usage = "python -m darl_jax.figures.goodput runs/digits --output=goodput.png"
    run_program(draw, usage, output="goodput.png", workdirs=True)
