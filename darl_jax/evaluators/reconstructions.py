"""Pictures of masked autoencoding: held-out images, what is kept of them, the reconstruction."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, UInt8

from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig, HostBatches
from darl_jax.methods.base import Batch
from darl_jax.methods.mae.method import MAEMethod
from darl_jax.methods.mae.model import MAE
from darl_jax.monitoring.drawing import Mosaic, rendered, text_width
from darl_jax.nn.patches import unpatchify, unstandardize
from darl_jax.training.sharding import global_array, replicated

_GAP = 8  # pixels between images
_RIGHT, _TOP, _BOTTOM = 16, 72, 16  # pixels of the margins
_LABEL = 10  # points of the rows' names, and pixels between them and the images
_GRAY = 128  # of patches that were removed


class Reconstructed(NamedTuple):
    """Images in three states, and their numbers in the split."""

    original: UInt8[np.ndarray, "image height width channel"]
    masked: UInt8[np.ndarray, "image height width channel"]
    reconstructed: UInt8[np.ndarray, "image height width channel"]
    record: Int[np.ndarray, " image"]


@dataclasses.dataclass(frozen=True)
class ReconstructionsConfig(EvaluatorConfig):
    """Config of pictures of MAE's reconstructions; `number` images are shown."""

    kind: str = "reconstructions"
    number: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(number=1)

    def build(self, context: Context) -> "Reconstructions":
        """Reads the first batch of the validation split."""
        if not isinstance(context.method, MAEMethod):
            raise ValueError(
                "kind 'reconstructions' shows what config.objective.name='mae' reconstructs, and "
                f"{context.method.name!r} masks nothing"
            )
        return Reconstructions(
            context.graphdef,
            context.method,
            context.batches(context.splits.validation),
            number=self.number,
            key=context.key,
            mesh=context.mesh,
        )


class Reconstructions(Evaluator):
    """Draws the first held-out images, masked alike at every step.

    Raises:
      ValueError: there is no image.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[MAE],
        method: MAEMethod,
        batches: HostBatches,
        *,
        number: int,
        key: PRNGKeyArray,
        mesh: Mesh,
    ):
        batch = next(iter(batches()), None)
        if batch is None:
            raise ValueError("the validation split holds no image; name one that does")
        mean, std, patch_size = method.data.mean, method.data.std, method.model.patch_size

        def reconstruct(params: PyTree, batch: Batch, key: PRNGKeyArray) -> tuple[Array, ...]:
            found = method.reconstruct(nnx.merge(graphdef, params), batch, key)
            # Unmasked rows first.
            shown = jnp.argsort(~batch["mask"], stable=True)[:number]
            grid = method.batch_grid(batch)

            def pixels(patches: Array) -> Array:
                images = unpatchify(patches[shown].astype(jnp.float32), patch_size, grid)
                return unstandardize(images, mean, std)

            kept = jnp.broadcast_to(found.kept[..., None], found.target.shape)
            is_kept = unpatchify(kept[shown], patch_size, grid)
            original = pixels(found.target)
            return (
                original,
                jnp.where(is_kept, original, jnp.uint8(_GRAY)),
                pixels(found.reconstructed),
                batch["index"][shown],
                jnp.sum(batch["mask"]),
            )

        # Replicated: any process can write the picture.
        self._reconstruct = jax.jit(reconstruct, out_shardings=replicated(mesh))
        self._batch, self._key, self._mesh = dict(batch), key, mesh

    def reconstruct(self, params: PyTree) -> Reconstructed:
        """Images, masked and reconstructed."""
        *shown, examples = jax.device_get(
            self._reconstruct(params, global_array(self._batch, self._mesh), self._key)
        )
        return Reconstructed(*(array[: int(examples)] for array in shown))

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, UInt8[np.ndarray, "_ _ 3"]]]:
        """Yields `reconstructions`, with the step in the title."""
        yield "reconstructions", draw_reconstructions(self.reconstruct(params), step)


def draw_reconstructions(found: Reconstructed, step: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Draws a column for each image: original, masked, reconstructed."""
    rows = found._asdict()
    record = rows.pop("record")
    left = _RIGHT + max(text_width(name, _LABEL) for name in rows) + _LABEL
    margins = left, _RIGHT, _TOP, _BOTTOM
    mosaic = Mosaic([[*images] for images in rows.values()], gap=(_GAP, _GAP), margins=margins)
    title = f"Step {step:,}: removed patches as the model predicts them"
    mosaic.text(_RIGHT, 16, title, size=12, weight="bold", va="top")
    for y, name in zip(mosaic.y, rows, strict=True):
        at = left - _LABEL, y + mosaic.height / 2
        mosaic.text(*at, name, size=_LABEL, ha="right", va="center")
    for x, number in zip(mosaic.x, record, strict=True):
        at = x + mosaic.width / 2, _TOP - 6
        mosaic.text(*at, f"record {number}", size=8, color="0.4", ha="center")
    return rendered(mosaic.figure)
