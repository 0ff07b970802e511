"""Draws accuracy over depth (Figure 8b) from the metrics of one or several runs, and a table of it.

python -m darl_jax.figures.depth runs/linear runs/attentive --output=depth.png

What is drawn of a run is the last evaluation of its probes, and the last one of k-NN where the run
has any. The table goes to the terminal; a * marks the best block of each column.
"""

import re
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from darl_jax.figures.program import COLORS, by_name, new_figure, plain, run_program
from darl_jax.monitoring.writers import read_metrics

# What a column is called behind the run's name, and what its metrics are called.
_METRICS = {"": r"validation/accuracy/block_(\d+)", ", k-NN": r"knn/accuracy/block_(\d+)"}

History = Sequence[Mapping[str, int | float]]
Column = Mapping[int, float]  # accuracy in [0, 1] by block, from 1


def columns(runs: Mapping[str, History]) -> dict[str, Column]:
    """The last accuracies of each run, of its probes and of k-NN.

    Raises:
      ValueError: a run has neither yet, or has some blocks' accuracies and not others'.
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
    """What the last line that has such metrics has of them."""
    for line in reversed(history):
        matches = {name: match for name in line if (match := re.fullmatch(pattern, name))}
        if matches:
            return {int(match[1]): float(line[name]) for name, match in matches.items()}
    return {}


def best_block(column: Column) -> int:
    """The block with the highest accuracy, the first of equals; one that is NaN never is."""
    return max(column, key=lambda block: (column[block] == column[block], column[block], -block))


def table(found: Mapping[str, Column]) -> str:
    """Accuracies in percent, a row for each block; runs of other depths are told apart."""
    depths = sorted({len(column) for column in found.values()})
    parts = []
    for depth in depths:
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
    """Top-1 accuracy over relative depth: a line for each run's probes, k-NN dashed.

    The best point of each line is marked and has its value beside it.
    """
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    runs: dict[str, str] = {}  # a color for each run, which its k-NN shares
    for name, column in found.items():
        knn = name.endswith(", k-NN")
        color = runs.setdefault(name.removesuffix(", k-NN"), COLORS[len(runs) % len(COLORS)])
        depth = len(column)
        x = [block / depth for block in sorted(column)]
        y = [100 * column[block] for block in sorted(column)]
        axes.plot(
            x,
            y,
            color=color,
            linestyle="--" if knn else "-",
            linewidth=1.4 if knn else 2,
            marker="o",
            markersize=3.5,
            label=name,
        )
        best = best_block(column)
        at = best / depth, 100 * column[best]
        axes.plot(*at, color=color, marker="*", markersize=15, markeredgecolor="white", zorder=3)
        axes.annotate(
            f"{at[1]:.1f}",
            at,
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=color,
            fontweight="bold",
        )
    axes.set(xlabel="relative depth of the block", ylabel="top-1 accuracy, %", xlim=(0, 1.03))
    axes.margins(y=0.1)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    plain(axes)
    axes.legend(frameon=False)
    return figure


def draw(workdirs: Sequence[str]) -> Figure:
    """The accuracies in each workdir's metrics; prints the table."""
    found = columns({name: read_metrics(workdir) for name, workdir in by_name(workdirs)})
    print(table(found))
    return depth_figure(found)


if __name__ == "__main__":
    usage = "python -m darl_jax.figures.depth runs/linear runs/attentive --output=depth.png"
    run_program(draw, usage, output="depth.png", workdirs=True)
