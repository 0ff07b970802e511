"""What a model predicts for a few held-out images, and where in the sequence it errs."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped, UInt8
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import IdentityTransform

from darl_jax.evaluators.base import (
    Context,
    Evaluator,
    EvaluatorConfig,
    HostBatches,
    image_method,
)
from darl_jax.methods.base import Batch
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.images import PatchMethod
from darl_jax.nn.orders import Order, take
from darl_jax.nn.patches import unpatchify, unstandardize
from darl_jax.training.sharding import global_array, replicated

_DPI = 100
_SMALLEST_SIDE = 112  # Pixels; smaller images are magnified by a whole number, without smoothing.
_GAP = 8  # Pixels between images.
_MARGINS = {"left": 96, "right": 96, "top": 72, "bottom": 16}  # Pixels.
_COLORS = colormaps["magma"]
_LARGEST_SHOWN = 0.5  # Of a pixel's range; fixed, so that colors mean the same at every step.


class Comparison(NamedTuple):
    """Images, what a model makes of them, and the error of a whole batch."""

    target: UInt8[np.ndarray, "image height width channel"]
    predicted: UInt8[np.ndarray, "image height width channel"]
    difference: Float[np.ndarray, "image height width"]  # absolute, mean over channels, black = 0
    record: Int[np.ndarray, " image"]  # each image's number in its split
    error: Float[np.ndarray, "rows columns"]  # squared, of each patch, mean over the batch
    in_sequence: Float[np.ndarray, " patch"]  # the same by the place in the sequence
    examples: int  # in that mean


@dataclasses.dataclass(frozen=True)
class PicturesConfig(EvaluatorConfig):
    """Pictures of predictions.

    Attributes:
      number: images that are shown.
    """

    kind: str = "pictures"
    number: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(number=1)

    def build(self, context: Context) -> "Pictures":
        """Reads the first batch of the validation split."""
        method = image_method(context.method, self.kind)
        if not isinstance(method, PatchMethod):
            raise ValueError(
                f"kind 'pictures' shows predicted patches, and config.objective.name="
                f"{method.name!r} predicts none"
            )
        return Pictures(
            context.graphdef,
            method,
            context.batches(context.splits.validation),
            number=self.number,
            order=method.model.order.title,
            mean=method.data.mean,
            std=method.data.std,
            key=context.key,
            mesh=context.mesh,
        )


class Pictures(Evaluator):
    """Renders the first batch of held-out images as a model predicts them.

    Args:
      graphdef: the model without its parameters.
      method: gives the predictions.
      batches: one pass over the images; only the first batch is read, and kept.
      number: images that are shown; the error by position is a mean over the whole batch.
      order: of the patches, in words.
      mean: of each channel, as the model was trained.
      std: of each channel, as the model was trained.
      key: of the noise, where there is noise; the same noise each time.
      mesh: where the model is.

    Raises:
      ValueError: there is no image.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[DARL],
        method: PatchMethod,
        batches: HostBatches,
        *,
        number: int,
        order: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        key: PRNGKeyArray,
        mesh: Mesh,
    ):
        batch = next(iter(batches()), None)  # The rest is closed as it is dropped.
        if batch is None:
            raise ValueError("the validation split holds no image; name one that does")

        def look(params: PyTree, batch: Batch, key: PRNGKeyArray) -> tuple[Array, ...]:
            model = nnx.merge(graphdef, params)
            target, predicted, error, order = method.predict(model, batch, key)
            in_image, in_sequence = mean_errors(error, order, batch["mask"])
            # Rows that count first; the others are black.
            shown = jnp.argsort(~batch["mask"], stable=True)[:number]
            patch_size, grid = model.backbone.config.patch_size, method.batch_grid(batch)
            target, predicted = (
                unpatchify(x[shown].astype(jnp.float32), patch_size, grid)
                for x in (target, predicted)
            )
            difference = jnp.mean(jnp.abs(predicted - target) * jnp.asarray(std), axis=-1)
            return (
                unstandardize(target, mean, std),
                unstandardize(predicted, mean, std),
                difference,
                batch["index"][shown],
                in_image.reshape(grid),
                in_sequence,
                jnp.sum(batch["mask"]),
            )

        # A copy everywhere: which process writes the pictures does not matter then.
        self._look = jax.jit(look, out_shardings=replicated(mesh))
        self._order = order
        self._key = key
        self._batch = dict(batch)
        self._mesh = mesh

    def compare(self, params: PyTree) -> Comparison:
        """Targets and predictions."""
        *arrays, examples = jax.device_get(
            self._look(params, global_array(self._batch, self._mesh), self._key)
        )
        target, predicted, difference, record, error, in_sequence = arrays
        shown = min(len(target), int(examples))
        return Comparison(
            target[:shown],
            predicted[:shown],
            difference[:shown],
            record[:shown],
            error,
            in_sequence,
            int(examples),
        )

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Yields `predictions` and `error_by_position`, with the step in their titles."""
        comparison = self.compare(params)
        yield "predictions", draw_predictions(comparison, step)
        yield (
            "error_by_position",
            draw_error_by_position(
                comparison.error,
                comparison.in_sequence,
                order=self._order,
                examples=comparison.examples,
                step=step,
            ),
        )


def mean_errors(
    error: Float[Array, "batch patch"], order: Order, mask: Bool[Array, " batch"]
) -> tuple[Float[Array, " patch"], Float[Array, " patch"]]:
    """Means over the examples that count, by raster number and by place in the sequence."""
    in_sequence = take(error[..., None], order)[..., 0]
    return _mean_where(error, mask), _mean_where(in_sequence, mask)


def _mean_where(
    values: Float[Array, "batch patch"], mask: Bool[Array, " batch"]
) -> Float[Array, " patch"]:
    # `where`, not a product: a row that does not count may be non-finite.
    return jnp.sum(jnp.where(mask[:, None], values, 0.0), axis=0) / jnp.sum(mask)


def magnify(
    image: Shaped[np.ndarray, "height width *channel"], factor: int
) -> Shaped[np.ndarray, "bigheight bigwidth *channel"]:
    """Each pixel as a square of factor x factor."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def draw_predictions(comparison: Comparison, step: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """A column for each image: the target, the prediction under it, their difference under that.

    Pixels are shown as they are, or magnified by a whole number.
    """
    number, height, width, _ = comparison.target.shape
    factor = max(1, -(-_SMALLEST_SIDE // height))
    height, width = height * factor, width * factor
    scale = Normalize(0.0, _LARGEST_SHOWN, clip=True)
    colors = _COLORS(scale(comparison.difference))[..., :3]
    rows: dict[str, np.ndarray] = {
        "target": comparison.target,
        "predicted": comparison.predicted,
        "difference": np.rint(colors * 255).astype(np.uint8),
    }
    left, right, top, bottom = _MARGINS.values()
    inner_height = len(rows) * (height + _GAP) - _GAP
    inner_width = number * (width + _GAP) - _GAP
    canvas = np.full((top + inner_height + bottom, left + inner_width + right, 3), 255, np.uint8)
    total_height, total_width, _ = canvas.shape
    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    # Text in pixels from the lower left corner.
    text = functools.partial(figure.text, transform=IdentityTransform())
    for row, (name, images) in enumerate(rows.items()):
        y = top + row * (height + _GAP)
        text(left - 10, total_height - y - height / 2, name, size=10, ha="right", va="center")
        for column, image in enumerate(images):
            x = left + column * (width + _GAP)
            canvas[y : y + height, x : x + width] = magnify(image, factor)
    figure.figimage(canvas, origin="upper", zorder=-1)
    title = f"Step {step:,}: each patch as the model predicts it"
    text(left, total_height - 16, title, size=12, weight="bold", va="top")
    for column, record in enumerate(comparison.record):
        x = left + column * (width + _GAP) + width / 2
        text(x, total_height - top + 6, f"record {record}", size=8, color="0.4", ha="center")
    bar = figure.add_axes(
        (
            (left + inner_width + 12) / total_width,
            bottom / total_height,
            12 / total_width,
            height / total_height,
        )
    )
    figure.colorbar(ScalarMappable(scale, _COLORS), cax=bar, extend="max", extendfrac=0.06)
    bar.set_ylabel("of a pixel's range", fontsize=8)
    bar.tick_params(labelsize=8)
    return rendered(figure)


def draw_error_by_position(
    error: Float[np.ndarray, "rows columns"],
    in_sequence: Float[np.ndarray, " patch"],
    *,
    order: str,
    examples: int,
    step: int,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """The error along the sequence, and beside it the same where the patches are in the image.

    Args:
      error: squared error of each patch.
      in_sequence: the same by the place in the sequence.
      order: the sequence's name.
      examples: images that it is a mean over.
      step: of training, for the title.
    """
    figure = Figure(figsize=(11, 4.2), dpi=_DPI, facecolor="white", layout="constrained")
    figure.suptitle(
        f"Step {step:,}: error by position in the sequence, mean over {examples} images",
        fontsize=12,
        fontweight="bold",
    )
    line, image = figure.subplots(1, 2, width_ratios=(1.7, 1))
    color = _COLORS(0.35)
    position = np.arange(1, error.size + 1)
    marker = "o" if error.size <= 64 else ""
    line.plot(position, in_sequence, color=color, linewidth=1.4, marker=marker, markersize=3.5)
    mean = float(np.mean(error))
    line.axhline(mean, color="0.5", linewidth=1, linestyle="--", label=f"mean {mean:.3f}")
    line.set(xlabel=f"patch in {order} order", ylabel="squared error", xlim=(0.5, error.size + 0.5))
    line.set_ylim(bottom=0)
    line.grid(color="0.92")
    line.set_axisbelow(True)
    line.spines[["top", "right"]].set_visible(False)
    line.legend(frameon=False, fontsize=9)

    rows, columns = error.shape
    shown = image.imshow(error, cmap=_COLORS, vmin=0, extent=(0.5, columns + 0.5, rows + 0.5, 0.5))
    image.set(xlabel="column of patches", ylabel="row of patches")
    for axis in (image.xaxis, image.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.colorbar(shown, ax=image, label="squared error")
    return rendered(figure)


def rendered(figure: Figure) -> UInt8[np.ndarray, "_ _ 3"]:
    """A figure's pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
