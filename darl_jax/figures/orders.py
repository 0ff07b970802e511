"""Draws each order of patches as a path over the grid (Figures 11 and 13).

python -m darl_jax.figures.orders --grid=16 --output=orders.png
"""

from collections.abc import Sequence

import numpy as np
from absl import app, flags
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from darl_jax.cli import EXIT_BAD_INPUT, one_line_errors
from darl_jax.models.orders import BLOCKED, FIXED, OrderConfig, fixed_order

BLOCKS = (2, 4, 8)
_COLUMNS = 4
_LARGEST_NUMBERED = 8  # rows of patches up to which each has its number


def orders_of(side: int) -> list[OrderConfig]:
    """Every fixed order of a square grid, those of blocks with each of BLOCKS that divides it."""
    found = []
    for name in FIXED:
        blocks = [b for b in BLOCKS if side % b == 0 and b < side] if name in BLOCKED else [2]
        found += [OrderConfig(name, block) for block in blocks]
    return found


def orders_figure(side: int) -> Figure:
    """A panel for each order: the path from dark to light, and patches shaded by their place.

    Raises:
      ValueError: a grid of a single patch has no order.
    """
    if side < 2:
        raise ValueError(f"--grid={side} must be at least 2")
    orders = orders_of(side)
    rows = -(-len(orders) // _COLUMNS)
    figure = Figure(figsize=(3 * _COLUMNS, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    colours = colormaps["viridis"]
    for panel, config in zip(panels, orders, strict=False):
        order = fixed_order(config, (side, side))
        y, x = np.divmod(order, side)
        place = np.arange(len(order)) / (len(order) - 1)
        shade = np.empty(len(order))
        shade[order] = place
        panel.imshow(shade.reshape(side, side), cmap=colours, alpha=0.35, vmin=0, vmax=1)
        points = np.stack([x, y], axis=1)
        segments = np.stack([points[:-1], points[1:]], axis=1)
        panel.add_collection(LineCollection([*segments], colors=colours(place[:-1]), linewidths=1.3))
        panel.plot(x[0], y[0], "o", color="black", markersize=4)
        if side <= _LARGEST_NUMBERED:
            for number, (column, row) in enumerate(points):
                panel.text(column, row, str(number + 1), ha="center", va="center", fontsize=7)
        panel.set_title(config.title, fontsize=11)
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(orders) :]:
        panel.set_axis_off()
    return figure


def main(argv: Sequence[str]) -> None:
    """Writes one picture."""
    with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
        if len(argv) > 1:
            raise ValueError(f"{' '.join(argv[1:])} is not understood; see --grid and --output")
        orders_figure(flags.FLAGS.grid).savefig(flags.FLAGS.output, dpi=80)
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_integer("grid", 16, "Rows and columns of patches.")
    flags.DEFINE_string("output", "orders.png", "The picture's file, a PNG.")
    app.run(main)
