"""The picture of a likelihood: where in the image its bits are, and at which levels of noise."""

import numpy as np
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from darl_jax.evaluators.likelihood import Measured
from darl_jax.evaluators.pictures import rendered

_COLOURS = colormaps["magma"]


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
        shown = axis.imshow(bits, cmap=_COLOURS, extent=(0.5, columns + 0.5, rows + 0.5, 0.5))
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
            left, by_patch.mean(axis=(1, 2)), width, label=name, color=_COLOURS(0.35 + 0.35 * i)
        )
    labels = [share.removeprefix("by_s/").replace("-", "–") for share in measured.shares]
    axis.set_xticks(place, ["1", *labels[1:]], fontsize=8)
    axis.set(xlabel="level of noise s; 1 is the reconstruction", ylabel="bits per dimension")
    axis.axhline(0.0, color="0.5", linewidth=1)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
