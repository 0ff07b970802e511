"""Bits per dimension of a set of images: numbers, arrays, and a picture."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darl_jax.evaluators.pictures import rendered

_COLORS = colormaps["magma"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bits per dimension of a set of images.

    Attributes:
      shares: what a likelihood is a sum of.
      by_patch: by name, of each share at each position, mean over images.
      by_image: by name, of each image, in each independent estimate.
      records: of each image, its number in what was measured.
      levels: at which the model's error was measured.
      error: mean squared error on training images, standardized pixels.
    """

    shares: tuple[str, ...]
    by_patch: dict[str, Float[np.ndarray, "share rows columns"]]
    by_image: dict[str, Float[np.ndarray, "replicate image"]]
    records: Int[np.ndarray, " image"]
    levels: Int[np.ndarray, " measured"]
    error: Float[np.ndarray, "measured variance"]

    def numbers(self) -> Iterator[tuple[str, float]]:
        """<name>/bits_per_dim, its errors, and the shares that it is the sum of."""
        number = len(self.records)
        for name, by_patch in self.by_patch.items():
            of_share = by_patch.mean(axis=(1, 2))
            by_image = self.by_image[name]
            yield f"{name}/bits_per_dim", float(of_share.sum())
            if number > 1:
                spread = by_image.mean(axis=0).std(ddof=1)
                yield f"{name}/standard_error", float(spread / np.sqrt(number))
            if len(by_image) == 2:
                difference = np.linalg.norm(by_image[1] - by_image[0])
                yield f"{name}/mc_error", float(difference / (2 * number))
            if len(self.shares) > 1:
                for share, bits in zip(self.shares, of_share, strict=True):
                    yield f"{name}/{share}", float(bits)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it under plain names, for a file."""
        found = {"shares": np.array(self.shares), "records": self.records}
        for name, by_patch in self.by_patch.items():
            found[f"{name}_by_patch"] = by_patch
            found[f"{name}_by_image"] = self.by_image[name]
        return found | {"levels": self.levels, "error": self.error}


def draw_likelihood(measured: Measured, step: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """A map of the image for each likelihood, and for a bound its shares by level beside them.

    Each map has a scale of its own, for what differs between positions is less than what differs
    between likelihoods.
    """
    maps, bars = measured.by_patch, len(measured.shares) > 1
    figure = Figure(
        figsize=(5.0 * len(maps) + 5.0 * bars, 4.2),
        dpi=100,
        facecolor="white",
        layout="constrained",
    )
    figure.suptitle(
        f"Step {step:,}: bits per dimension of {len(measured.records)} images",
        fontsize=12,
        fontweight="bold",
    )
    axes = figure.subplots(1, len(maps) + bars, squeeze=False)[0]
    for axis, (name, by_patch) in zip(axes, maps.items(), strict=False):
        bits = by_patch.sum(axis=0)
        rows, columns = bits.shape
        shown = axis.imshow(bits, cmap=_COLORS, extent=(0.5, columns + 0.5, rows + 0.5, 0.5))
        axis.set(xlabel="column of patches", ylabel="row of patches")
        axis.set_title(f"{name}: {bits.mean():.3f}", fontsize=10)
        for each in (axis.xaxis, axis.yaxis):
            each.get_major_locator().set_params(integer=True, min_n_ticks=1)
        figure.colorbar(shown, ax=axis, label="bits per dimension", shrink=0.9)
    if bars:
        _draw_shares(axes[-1], measured)
    return rendered(figure)


def _draw_shares(axis: Axes, measured: Measured) -> None:
    """The shares of each level of noise, side by side."""
    place, width = np.arange(len(measured.shares)), 0.8 / len(measured.by_patch)
    for i, (name, by_patch) in enumerate(measured.by_patch.items()):
        left = place + (i - (len(measured.by_patch) - 1) / 2) * width
        axis.bar(
            left, by_patch.mean(axis=(1, 2)), width, label=name, color=_COLORS(0.35 + 0.35 * i)
        )
    labels = [share.removeprefix("by_s/").replace("-", "–") for share in measured.shares]
    axis.set_xticks(place, ["1", *labels[1:]], fontsize=8)
    axis.set(xlabel="level of noise s; 1 is the reconstruction", ylabel="bits per dimension")
    axis.axhline(0.0, color="0.5", linewidth=1)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
