"""Bits per dimension of a set of images: numbers, arrays, and a picture."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes

from darl_jax.monitoring.drawing import MAGMA, patch_map, plain, rendered, titled_figure


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bits per dimension of a set of images.

    Attributes:
      shares: names of a likelihood's summands.
      by_patch: by name of the likelihood, mean over images of each share at each position.
      by_image: by name, each independent estimate of each image.
      records: index of each image among the measured ones.
      levels: levels of the model's error.
      error: mean squared error on training images, standardized pixels.
    """

    shares: tuple[str, ...]
    by_patch: dict[str, Float[np.ndarray, "share rows columns"]]
    by_image: dict[str, Float[np.ndarray, "replicate image"]]
    records: Int[np.ndarray, " image"]
    levels: Int[np.ndarray, " measured"]
    error: Float[np.ndarray, "measured variance"]

    def numbers(self) -> Iterator[tuple[str, float]]:
        """Yields <name>/bits_per_dim, its errors, and its shares."""
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
        """Arrays for a file."""
        found = {"shares": np.array(self.shares), "records": self.records}
        for name, by_patch in self.by_patch.items():
            found[f"{name}_by_patch"] = by_patch
            found[f"{name}_by_image"] = self.by_image[name]
        return found | {"levels": self.levels, "error": self.error}


def draw_likelihood(measured: Measured, step: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws a map of the image for each likelihood, and a bound's shares by level.

    Each map has a scale of its own: positions differ less than likelihoods do.
    """
    maps, bars = measured.by_patch, len(measured.shares) > 1
    figure = titled_figure(
        5.0 * len(maps) + 5.0 * bars,
        f"Step {step:,}: bits per dimension of {len(measured.records)} images",
    )
    panels = figure.subplots(1, len(maps) + bars, squeeze=False)[0]
    for panel, (name, by_patch) in zip(panels, maps.items(), strict=False):
        bits = by_patch.sum(axis=0)
        patch_map(panel, bits, "bits per dimension")
        panel.set_title(f"{name}: {bits.mean():.3f}", fontsize=10)
    if bars:
        _draw_shares(panels[-1], measured)
    return rendered(figure)


def _draw_shares(axes: Axes, measured: Measured) -> None:
    """Draws the shares of each level of noise side by side."""
    x, width = np.arange(len(measured.shares)), 0.8 / len(measured.by_patch)
    for i, (name, by_patch) in enumerate(measured.by_patch.items()):
        left = x + (i - (len(measured.by_patch) - 1) / 2) * width
        axes.bar(left, by_patch.mean(axis=(1, 2)), width, label=name, color=MAGMA(0.35 + 0.35 * i))
    labels = [share.removeprefix("by_s/").replace("-", "–") for share in measured.shares]
    axes.set_xticks(x, ["1", *labels[1:]], fontsize=8)
    axes.set(xlabel="level of noise s; 1 is the reconstruction", ylabel="bits per dimension")
    axes.axhline(0.0, color="0.5", linewidth=1)
    plain(axes, axis="y")
    axes.legend(frameon=False, fontsize=9)
