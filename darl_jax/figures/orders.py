"""Draws each order of patches as a path over the grid (Figures 11 and 13).

python -m darl_jax.figures.orders --grid=16 --output=orders.png
"""

import numpy as np
from absl import flags
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from darl_jax.figures.program import new_figure, run_program
from darl_jax.nn.orders import BLOCKED, FIXED, OrderConfig, fixed_order, inverse

BLOCKS = (2, 4, 8)
_COLUMNS = 4
_LARGEST_NUMBERED = 8  # largest grid side whose patches are numbered


def orders_of(side: int) -> list[OrderConfig]:
    """Fixed orders of a square grid, with each of BLOCKS that divides it and is smaller."""
    found = []
    for name in FIXED:
        blocks = [b for b in BLOCKS if side % b == 0 and b < side] if name in BLOCKED else [2]
        found += [OrderConfig(name, block) for block in blocks]
    return found


def orders_figure(grid: int) -> Figure:
    """Draws the path of each order, from the dot on, over patches colored by position.

    Raises:
      ValueError: the grid has less than 2 rows.
    """
    if grid < 2:
        raise ValueError(f"--grid={grid} must be at least 2")
    orders = orders_of(grid)
    rows = -(-len(orders) // _COLUMNS)
    figure = new_figure(3 * _COLUMNS + 0.7, 3.2 * rows)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False)
    scale = Normalize(1, grid * grid)
    for panel, config in zip(panels.ravel(), orders, strict=False):
        _draw_order(panel, fixed_order(config, (grid, grid)), grid, scale)
        panel.set_title(config.title, fontsize=11)
    for panel in panels.ravel()[len(orders) :]:
        panel.set_axis_off()
    colors = ScalarMappable(scale, "viridis")
    figure.colorbar(colors, ax=panels, label="position in the sequence", fraction=0.02, pad=0.01)
    return figure


def _draw_order(panel: Axes, order: Int[np.ndarray, " patch"], side: int, scale: Normalize) -> None:
    position = np.asarray(inverse(order)).reshape(side, side) + 1
    panel.imshow(position, cmap="viridis", norm=scale)
    points = np.stack([order % side, order // side], axis=1)
    segments = np.stack([points[:-1], points[1:]], axis=1)
    jump = np.abs(segments[:, 1] - segments[:, 0]).max(axis=1) > 1
    # Jumps are thin, or they would hide the rest; so is the rest of a path of mostly jumps.
    thin = jump | (jump.mean() > 0.5)
    for chosen, width, alpha in ((thin, 0.5, 0.45), (~thin, 1.4, 0.9)):
        panel.add_collection(
            LineCollection([*segments[chosen]], colors="white", linewidths=width, alpha=alpha)
        )
    panel.plot(*points[0], "o", color="white", markeredgecolor="black", markersize=4.5)
    if side <= _LARGEST_NUMBERED:
        for number, (column, row) in enumerate(points, start=1):
            color = "black" if scale(number) > 0.6 else "white"
            x, y = column + 0.42, row + 0.42
            panel.text(x, y, str(number), ha="right", va="bottom", color=color, size=7)
    panel.set(xticks=[], yticks=[])


if __name__ == "__main__":
    run_program(
        orders_figure,
        "python -m darl_jax.figures.orders --grid=16 --output=orders.png",
        output="orders.png",
        grid=flags.DEFINE_integer("grid", 16, "Rows and columns of patches."),
    )
