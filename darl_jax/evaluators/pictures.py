"""Pictures of predictions for held-out images, and of the error by position."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig, HostBatches
from darl_jax.methods.base import Batch
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.images import PatchMethod
from darl_jax.monitoring.drawing import MAGMA, Mosaic, patch_map, plain, rendered, titled_figure
from darl_jax.nn.orders import Order, take
from darl_jax.nn.patches import unpatchify, unstandardize
from darl_jax.training.sharding import global_array, replicated

_GAP = 8  # pixels between images
_MARGINS = 96, 96, 72, 16  # pixels: left, right, top, bottom
_LARGEST_SHOWN = 0.5  # of a pixel's range; fixed, so that colors mean the same at every step


class Comparison(NamedTuple):
    """Images, predictions of them, and the error of a whole batch."""

    target: UInt8[np.ndarray, "image height width channel"]
    predicted: UInt8[np.ndarray, "image height width channel"]
    difference: Float[np.ndarray, "image height width"]  # absolute, mean over channels, black = 0
    record: Int[np.ndarray, " image"]  # each image's number in its split
    error: Float[np.ndarray, "rows columns"]  # squared, of each patch, mean over the batch
    in_sequence: Float[np.ndarray, " patch"]  # the same by position in the sequence
    examples: int  # in that mean


@dataclasses.dataclass(frozen=True)
class PicturesConfig(EvaluatorConfig):
    """Config of pictures of predictions; `number` images are shown."""

    kind: str = "pictures"
    number: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(number=1)

    def build(self, context: Context) -> "Pictures":
        """Reads the first batch of the validation split."""
        return Pictures(context, context.batches(context.splits.validation), number=self.number)


class Pictures(Evaluator):
    """Draws predictions of the first batch of held-out images, with the same noise each time.

    Args:
      batches: one pass over the images; only the first batch is read, and kept.
      number: images to show; the error by position is a mean over the whole batch.

    Raises:
      ValueError: there is no image, or the method does not predict patches of images.
    """

    def __init__(self, context: Context, batches: HostBatches, *, number: int):
        method = context.method
        if not isinstance(method, PatchMethod):
            raise ValueError(
                f"kind 'pictures' shows predicted patches, and config.objective.name="
                f"{method.name!r} predicts none"
            )
        mean, std = method.data.mean, method.data.std
        batch = next(iter(batches()), None)
        if batch is None:
            raise ValueError("the validation split holds no image; name one that does")

        def compare(params: PyTree, batch: Batch, key: PRNGKeyArray) -> tuple[Array, ...]:
            model: DARL = nnx.merge(context.graphdef, params)
            target, predicted, error, order = method.predict(model, batch, key)
            in_image, in_sequence = mean_errors(error, order, batch["mask"])
            # Unmasked rows first.
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

        # Replicated: any process can write the pictures.
        self._compare = jax.jit(compare, out_shardings=replicated(context.mesh))
        self._order = method.model.order.title
        self._batch, self._key, self._mesh = dict(batch), context.key, context.mesh

    def compare(self, params: PyTree) -> Comparison:
        """Targets and predictions."""
        *images, error, in_sequence, examples = jax.device_get(
            self._compare(params, global_array(self._batch, self._mesh), self._key)
        )
        target, predicted, difference, record = (array[: int(examples)] for array in images)
        errors = error, in_sequence, int(examples)
        return Comparison(target, predicted, difference, record, *errors)

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Yields `predictions` and `error_by_position`, with the step in their titles."""
        found = self.compare(params)
        yield "predictions", draw_predictions(found, step)
        errors = draw_error_by_position(
            found.error,
            found.in_sequence,
            order=self._order,
            examples=found.examples,
            step=step,
        )
        yield "error_by_position", errors


def mean_errors(
    error: Float[Array, "batch patch"], order: Order, mask: Bool[Array, " batch"]
) -> tuple[Float[Array, " patch"], Float[Array, " patch"]]:
    """Means over unmasked examples, by raster index and by position in the sequence."""
    in_sequence = take(error[..., None], order)[..., 0]
    return _mean_where(error, mask), _mean_where(in_sequence, mask)


def _mean_where(
    values: Float[Array, "batch patch"], mask: Bool[Array, " batch"]
) -> Float[Array, " patch"]:
    # `where`, not a product: padding may be non-finite.
    return jnp.sum(jnp.where(mask[:, None], values, 0.0), axis=0) / jnp.sum(mask)


def draw_predictions(comparison: Comparison, step: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws a column for each image: target, prediction, difference."""
    scale = Normalize(0.0, _LARGEST_SHOWN, clip=True)
    colors = MAGMA(scale(comparison.difference))[..., :3]
    rows: dict[str, np.ndarray] = {
        "target": comparison.target,
        "predicted": comparison.predicted,
        "difference": np.rint(colors * 255).astype(np.uint8),
    }
    left, _, top, bottom = _MARGINS
    mosaic = Mosaic([[*images] for images in rows.values()], gap=(_GAP, _GAP), margins=_MARGINS)
    title = f"Step {step:,}: each patch as the model predicts it"
    mosaic.text(left, 16, title, size=12, weight="bold", va="top")
    for y, name in zip(mosaic.y, rows, strict=True):
        mosaic.text(left - 10, y + mosaic.height / 2, name, size=10, ha="right", va="center")
    for x, record in zip(mosaic.x, comparison.record, strict=True):
        at = x + mosaic.width / 2, top - 6
        mosaic.text(*at, f"record {record}", size=8, color="0.4", ha="center")
    height, width = mosaic.shape
    x = mosaic.x[-1] + mosaic.width + 12
    box = x / width, bottom / height, 12 / width, mosaic.height / height
    bar = mosaic.figure.add_axes(box)
    mosaic.figure.colorbar(ScalarMappable(scale, MAGMA), cax=bar, extend="max", extendfrac=0.06)
    bar.set_ylabel("of a pixel's range", fontsize=8)
    bar.tick_params(labelsize=8)
    return rendered(mosaic.figure)


def draw_error_by_position(
    error: Float[np.ndarray, "rows columns"],
    in_sequence: Float[np.ndarray, " patch"],
    *,
    order: str,
    examples: int,
    step: int,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws the squared error by position in the sequence and in the image.

    Args:
      error: of each patch of the image.
      in_sequence: of each position in the sequence.
      order: name of the sequence's order.
      examples: number of images in the mean.
      step: of training.
    """
    figure = titled_figure(
        11, f"Step {step:,}: error by position in the sequence, mean over {examples} images"
    )
    line, image = figure.subplots(1, 2, width_ratios=(1.7, 1))
    position = np.arange(1, error.size + 1)
    style = {"color": MAGMA(0.35), "linewidth": 1.4, "markersize": 3.5}
    line.plot(position, in_sequence, marker="o" if error.size <= 64 else "", **style)
    mean = float(np.nanmean(error))  # patches that are given have no error
    line.axhline(mean, color="0.5", linewidth=1, linestyle="--", label=f"mean {mean:.3f}")
    line.set(xlabel=f"patch in {order} order", ylabel="squared error", xlim=(0.5, error.size + 0.5))
    line.set_ylim(bottom=0)
    plain(line)
    line.legend(frameon=False, fontsize=9)
    patch_map(image, error, "squared error", vmin=0)
    return rendered(figure)
