"""Goodput: how much of a run's wall time went into training steps, and where the rest went.

    python -m darl_jax.monitoring.goodput runs/digits --output=goodput.png

prints a table and draws a picture of it, of a run that goes on as well as of a finished one.
"""

import contextlib
import datetime
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import psutil
from absl import app, flags
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darl_jax.monitoring.writers import read_metrics
from darl_jax.runtime.cli import EXIT_BAD_INPUT, one_line_errors

# The categories, in the order of the picture and the table; lost is the last one.
_COLORS = {
    "productive": "#0b6e99",
    "input": "#ea580c",
    "evaluation": "#94a3b8",
    "checkpoint": "#65a30d",
    "compile": "#7e22ce",
    "startup": "#eab308",
    "lost": "#be123c",
}
CATEGORIES = tuple(_COLORS)

# Productive time has two parts: the host's work, and its waiting for the device. What a `with` may
# name; the rest of a running loop is the host's.
_HOST, _DEVICE = "host", "device"
_SPENT = ("startup", "compile", "input", "checkpoint", "evaluation", _DEVICE)

_SHARE, _ATTEMPT, _FINISHED = "goodput/share", "goodput/attempt", "goodput/finished"
_MAX_BINS = 150  # columns of the picture
_MAX_LABELS = 8  # attempts that are named in it

History = Sequence[Mapping[str, int | float]]


def _key(category: str) -> str:
    return f"goodput/{category}_seconds"


def history_until(workdir: os.PathLike | str, step: int) -> History:
    """What earlier attempts wrote, without what an attempt that goes on from `step` will redo."""
    try:
        history = read_metrics(workdir)
    except FileNotFoundError:
        return []
    return [line for line in history if line["step"] <= step]


class Goodput:
    """Counts each second of a run, over all its attempts, in exactly one category.

    Attempts know of each other by `metrics.jsonl` alone, where the numbers of `summary` stand: a
    new attempt goes on from those of the last line that is still valid, and counts what was after
    it as lost: the time when nothing ran, and steps that no checkpoint held and that are done
    again. An attempt that wrote nothing before it was killed is therefore lost time too, or, if no
    other was before it, not known. Between a finished run and its extension nothing is lost.

    Start-up is counted from the creation of this process until the first batch is there, without
    compilation.

    Args:
      history: lines of earlier attempts, from `history_until`.
      created: when this process was created, in Unix seconds; None asks the operating system.
      clock: Unix seconds. Where it goes backwards, no time passes.
    """

    def __init__(
        self,
        history: History = (),
        *,
        created: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        created = psutil.Process().create_time() if created is None else created
        self._clock = clock
        last = next((line for line in reversed(history) if _SHARE in line), {})
        self._seconds = {category: float(last.get(_key(category), 0)) for category in CATEGORIES}
        # Of this attempt, and added to productive time where that is asked for.
        self._seconds |= {_HOST: 0.0, _DEVICE: 0.0}
        self._attempt = int(last.get(_ATTEMPT, 0)) + 1
        if last and _FINISHED not in last:
            # The machine before may have had a clock that was ahead of this one.
            self._seconds["lost"] += max(0.0, created - last["time"])
        self._training = False
        self._category = "startup"
        self._since = min(created, clock())
        self._window_began = self._parts()

    @contextlib.contextmanager
    def spent(self, category: str) -> Iterator[None]:
        """Counts the time inside for a category, and that of an inner `spent` for its own alone.

        Args:
          category: 'startup', 'compile', 'input', 'checkpoint', 'evaluation', or 'device' for
            waiting for the results of steps, which is productive. What is in none of them is
            start-up until the first wait for input has ended, that wait included (it is for
            workers that start), and from then on productive.

        Raises:
          ValueError: there is no such category.
        """
        if category not in _SPENT:
            raise ValueError(f"time cannot be spent on {category!r}; choose from {_SPENT}")
        first_batch = category == "input" and not self._training
        before = self._turn_to("startup" if first_batch else category)
        try:
            yield
            if first_batch:
                self._training = True
                before = _HOST
        finally:
            self._turn_to(before)

    def summary(self, *, finished: bool = False) -> dict[str, float]:
        """The numbers so far, for a line of metrics.

        Args:
          finished: whether the run ends here, so that the time until it is made longer some day
            is not lost.

        Returns:
          'goodput/share' of productive time; 'goodput/<category>_seconds', whose sum is the time
          since the first attempt began; 'goodput/attempt', from 1 on.
        """
        self._turn_to(self._category)
        seconds = {category: self._seconds[category] for category in CATEGORIES}
        seconds["productive"] += self._seconds[_HOST] + self._seconds[_DEVICE]
        wall = sum(seconds.values())
        values = {_SHARE: seconds["productive"] / wall if wall else 0.0}
        values |= {_key(category): x for category, x in seconds.items()}
        values[_ATTEMPT] = float(self._attempt)
        return values | ({_FINISHED: 1.0} if finished else {})

    def window(self) -> Float[np.ndarray, " part=3"]:
        """Seconds of the loop since the last call: waiting for input, host, waiting for device."""
        self._turn_to(self._category)
        before, self._window_began = self._window_began, self._parts()
        return self._window_began - before

    def _parts(self) -> Float[np.ndarray, " part=3"]:
        return np.array([self._seconds[part] for part in ("input", _HOST, _DEVICE)])

    def _turn_to(self, category: str) -> str:
        """Counts until now and changes the category; returns the one before."""
        now = self._clock()
        if now > self._since:
            self._seconds[self._category] += now - self._since
        self._since = now
        before, self._category = self._category, category
        return before


def timeline(
    history: History,
) -> tuple[Float[np.ndarray, "point category"], list[float]]:
    """Where the time had gone by each line of a history, and when attempts after the first began.

    Returns:
      Seconds in each of CATEGORIES at the run's beginning, at each line, and at the beginning of
      each later attempt; and the sums of the latter, seconds since the run's beginning.

    Raises:
      ValueError: the history has no goodput.
    """
    points, starts, attempt = [[0.0] * len(CATEGORIES)], [], None
    for line in history:
        if _SHARE not in line:
            continue
        seconds = [float(line[_key(category)]) for category in CATEGORIES]
        if attempt is not None and line[_ATTEMPT] > attempt:
            # First what was lost, then the new attempt's own time.
            points.append([*points[-1][:-1], seconds[-1]])
            starts.append(sum(points[-1]))
        attempt = line[_ATTEMPT]
        points.append(seconds)
    if attempt is None:
        raise ValueError("no goodput has been written there yet")
    return np.array(points), starts


def table(name: str, history: History) -> str:
    """Where a run's time went, in words. Raises ValueError where nothing is known of it."""
    points, starts = timeline(history)
    wall = points[-1].sum()
    lines = [f"{name}: {_attempts(starts)}, {_duration(wall)} since the first began"]
    for category, spent in zip(CATEGORIES, points[-1], strict=True):
        lines.append(
            f"  {category:<11}{spent / wall:>6.1%} {_duration(spent):>{len(_duration(wall))}}"
        )
    return "\n".join(lines)


def goodput_figure(name: str, history: History) -> Figure:
    """One bar for the whole run, and below it what each part of its wall time went into.

    Raises:
      ValueError: the history has no goodput.
    """
    points, starts = timeline(history)
    wall, share = points[-1].sum(), points[-1][0] / points[-1].sum()
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    total, over_time = figure.subplots(2, 1, height_ratios=(1, 5))
    _draw_total(total, points[-1])
    total.set_title(f"{name}: {share:.1%} of {_duration(wall)} productive, {_attempts(starts)}")
    _draw_over_time(over_time, points, starts)
    handles, labels = total.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    return figure


def _draw_total(axes: Axes, seconds: Float[np.ndarray, " category"]) -> None:
    wall, left = seconds.sum(), 0.0
    for category, spent in zip(CATEGORIES, seconds, strict=True):
        share = spent / wall
        label = f"{category} {share:.1%}\n{_duration(spent)}"
        axes.barh(0, share, left=left, color=_COLORS[category], label=label)
        left += share
    axes.set_xlim(0, 1)
    axes.set_axis_off()


def _draw_over_time(
    axes: Axes, seconds: Float[np.ndarray, "point category"], starts: Sequence[float]
) -> None:
    scale, unit = _unit(seconds[-1].sum())
    edges, shares = _shares_over_time(seconds)
    below = np.zeros(len(shares))
    for category, share in zip(CATEGORIES, shares.T, strict=True):
        axes.bar(
            edges[:-1] / scale,
            share,
            np.diff(edges) / scale,
            below,
            align="edge",
            color=_COLORS[category],
        )
        below += share
    for number, start in enumerate(starts, start=2):
        axes.axvline(start / scale, color="black", linewidth=0.8, linestyle=":")
        if len(starts) < _MAX_LABELS:
            axes.annotate(
                f" attempt {number}",
                (start / scale, 1),
                xycoords=("data", "axes fraction"),
                va="bottom",
                fontsize="small",
            )
    axes.set(
        xlim=(0, edges[-1] / scale),
        ylim=(0, 1),
        xlabel=f"{unit} since the run first began",
        ylabel="share of the time",
    )
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)


def _shares_over_time(
    seconds: Float[np.ndarray, "point category"],
) -> tuple[Float[np.ndarray, " edge"], Float[np.ndarray, "bin category"]]:
    """Columns from point to point where these are few, and equal parts of the time else."""
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


def main(argv: Sequence[str]) -> None:
    """Reads a workdir's metrics, prints the table and writes the picture."""
    with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
        if len(argv) != 2:
            raise ValueError("name one workdir, as in runs/digits")
        name, history = pathlib.PurePath(argv[1]).name, read_metrics(argv[1])
        print(table(name, history))
        goodput_figure(name, history).savefig(flags.FLAGS.output, dpi=110)
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    # Not where this module is imported: programs have flags of their own.
    flags.DEFINE_string("output", "goodput.png", "The picture's file, a PNG.")
    app.run(main)
