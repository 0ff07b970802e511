"""Draws accuracy over depth (Figure 8b) from the metrics of one or several runs, and a table of it.

python -m darl_jax.figures.depth runs/linear runs/attentive --output=depth.png

Reads the last evaluation of a run's probes, and the last one of k-NN if there is any. The table
goes to the terminal; a * marks the best block of each column.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from darl_jax.figures.program import COLORS, by_name, new_figure, run_program
from darl_jax.monitoring.clock import History
from darl_jax.monitoring.drawing import plain
from darl_jax.monitoring.writers import read_metrics

# Suffix of a column's name -> names of its metrics.
_METRICS = {"": r"validation/accuracy/block_(\d+)", ", k-NN": r"knn/accuracy/block_(\d+)"}

Column = Mapping[int, float]  # accuracy in [0, 1] by block, from 1


def columns(runs: Mapping[str, History]) -> dict[str, Column]:
    """Last accuracies of each run's probes and k-NN.

    Raises:
      ValueError: a run has neither, or a block is missing.
    """
    found: dict[str, Column] = {}
    for run, history in runs.items():
        of_run = {
            f"{run}{suffix}": column
            for suffix, pattern in _METRICS.items()
            if (column := _last(history, pattern))
        }
        if not of_run:
            raise ValueError(
                f"{run}: no accuracy by block has been written there yet, neither of probes "
                "(objective.name='probes') nor of k-NN (an evaluator of kind 'knn')"
            )
        for name, column in of_run.items():
            if sorted(column) != list(range(1, len(column) + 1)):
                raise ValueError(f"{name}: of {max(column)} blocks only {len(column)} have a value")
        found |= of_run
    return found


def _last(history: History, pattern: str) -> Column:
    """Values by block of the last line with metrics of a pattern."""
    for line in reversed(history):
        matches = {name: match for name in line if (match := re.fullmatch(pattern, name))}
        if matches:
            return {int(match[1]): float(line[name]) for name, match in matches.items()}
    return {}


def best_block(column: Column) -> int:
    """Block with the highest accuracy, the first of equals; NaN is never the best."""
    return max(column, key=lambda block: (column[block] == column[block], column[block], -block))


def table(found: Mapping[str, Column]) -> str:
    """Formats accuracies in percent, a row for each block and a table for each depth."""
    parts = []
    for depth in sorted({len(column) for column in found.values()}):
        of_depth = {name: column for name, column in found.items() if len(column) == depth}
        widths = {name: max(len(name), 7) for name in of_depth}
        heads = "".join(f"   {name:>{widths[name]}} " for name in of_depth)
        lines = [f"block   depth{heads}"]
        for block in range(1, depth + 1):
            cells = "".join(
                f"   {100 * column[block]:>{widths[name]}.2f}"
                f"{'*' if block == best_block(column) else ' '}"
                for name, column in of_depth.items()
            )
            lines.append(f"{block:5d}   {block / depth:5.3f}{cells}")
        parts.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(parts)


def depth_figure(found: Mapping[str, Column]) -> Figure:
    """Draws top-1 accuracy over relative depth, k-NN dashed, with the best point of each line."""
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    runs: dict[str, str] = {}  # a color for each run, which its k-NN shares
    for name, column in found.items():
        knn = name.endswith(", k-NN")
        color = runs.setdefault(name.removesuffix(", k-NN"), COLORS[len(runs) % len(COLORS)])
        depth = len(column)
        x = [block / depth for block in sorted(column)]
        y = [100 * column[block] for block in sorted(column)]
        style, width = ("o--", 1.4) if knn else ("o-", 2)
        axes.plot(x, y, style, color=color, linewidth=width, markersize=3.5, label=name)
        best = best_block(column)
        at = best / depth, 100 * column[best]
        axes.plot(*at, color=color, marker="*", markersize=15, markeredgecolor="white", zorder=3)
        above: dict[str, Any] = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{at[1]:.1f}", at, color=color, fontweight="bold", **above)
    axes.set(xlabel="relative depth of the block", ylabel="top-1 accuracy, %", xlim=(0, 1.03))
    axes.margins(y=0.1)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    plain(axes)
    axes.legend(frameon=False)
    return figure


def draw(workdirs: Sequence[str]) -> Figure:
    """Draws the accuracies in the metrics of each workdir, and prints the table."""
    found = columns({name: read_metrics(workdir) for name, workdir in by_name(workdirs)})
    print(table(found))
    return depth_figure(found)


if __name__ == "__main__":
    usage = "python -m darl_jax.figures.depth runs/linear runs/attentive --output=depth.png"
    run_program(draw, usage, output="depth.png", workdirs=True)
