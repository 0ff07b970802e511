"""Drawing that evaluators and figures share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform

DPI = 100
MAGMA = colormaps["magma"]
_SMALLEST_SIDE = 112  # pixels; smaller images are magnified by an integer, without smoothing


def titled_figure(width: int | float, title: str) -> Figure:
    """Empty figure of a width in inches, with a bold title."""
    figure = Figure(figsize=(width, 4.2), dpi=DPI, facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


def plain(axes: Axes, **grid: Any) -> None:
    """Draws a faint grid behind the data, and no frame at the top and on the right."""
    axes.grid(which="both", color="0.92", **grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def patch_map(axes: Axes, values: Float[np.ndarray, "rows columns"], label: str, **kw: Any) -> None:
    """Map of a value of each patch of an image, with a color bar."""
    rows, columns = values.shape
    shown = axes.imshow(values, cmap=MAGMA, extent=(0.5, columns + 0.5, rows + 0.5, 0.5), **kw)
    axes.set(xlabel="column of patches", ylabel="row of patches")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.figure.colorbar(shown, ax=axes, label=label)


def text_width(text: str, size: int) -> int:
    """Pixels that a line of text of a size in points takes, rounded up."""
    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    return math.ceil(figure.text(0, 0, text, size=size).get_window_extent(renderer).width)


def magnify(
    image: Shaped[np.ndarray, "height width *channel"], factor: int
) -> Shaped[np.ndarray, "bigheight bigwidth *channel"]:
    """Each pixel as a square of factor x factor."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


class Mosaic:
    """Figure with rows of images, in pixels from the upper left corner.

    Args:
      rows: images of each row, of one size.
      gap: pixels between rows and between columns.
      margins: pixels on the left, on the right, at the top and at the bottom.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[UInt8[np.ndarray, "height width channel"]]],
        *,
        gap: tuple[int, int],
        margins: tuple[int, int, int, int],
    ):
        left, right, top, bottom = margins
        height, width, _ = rows[0][0].shape
        factor = max(1, -(-_SMALLEST_SIDE // height))
        self.height, self.width = height * factor, width * factor  # of an image
        self.y = [top + row * (self.height + gap[0]) for row in range(len(rows))]
        self.x = [left + column * (self.width + gap[1]) for column in range(len(rows[0]))]
        self.shape = self.y[-1] + self.height + bottom, self.x[-1] + self.width + right
        canvas = np.full((*self.shape, 3), 255, np.uint8)
        for y, images in zip(self.y, rows, strict=True):
            for x, image in zip(self.x, images, strict=True):
                canvas[y : y + self.height, x : x + self.width] = magnify(image, factor)
        self.figure = Figure(figsize=(self.shape[1] / DPI, self.shape[0] / DPI), dpi=DPI)
        self.figure.figimage(canvas, origin="upper", zorder=-1)

    def text(self, x: int | float, y: int | float, text: str, **style: Any) -> None:
        """Writes a text at a point."""
        self.figure.text(x, self.shape[0] - y, text, transform=IdentityTransform(), **style)


def rendered(figure: Figure) -> UInt8[np.ndarray, "_ _ 3"]:
    """Pixels of a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
