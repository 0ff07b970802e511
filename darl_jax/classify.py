"""Classifies images with a fine-tuned model: names and probabilities as CSV and as a picture.

    python -m darl_jax.classify --checkpoint=runs/finetuned --images=photos/ --output=classified
    python -m darl_jax.classify --checkpoint=exported --images=a.jpg,b.png --output=classified

The checkpoint is the workdir of a run with config.objective.name=classification, or an export of
one. Images of any size are cropped and resized as in evaluation. The output folder gets
predictions.csv, with a line for each image and its likeliest classes, and predictions.png, which
shows the first images with theirs. Exit codes: 0 done; 1 an error while it ran; 2 a flag, image or
checkpoint that cannot be used.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags, logging
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.generation.request import image_files, read_images
from darl_jax.interchange.initialization import restored_params
from darl_jax.interchange.loading import load_model
from darl_jax.methods.base import Batch
from darl_jax.methods.transfer.classification import Classification
from darl_jax.monitoring.progress import Progress
from darl_jax.runtime import cli
from darl_jax.training.sharding import global_array, make_mesh, replicated
from darl_jax.training.state import graph_definition

_USAGE = "python -m darl_jax.classify --checkpoint=runs/finetuned --images=photos/ --output=out"
_SHOWN = 24  # images in the picture
_COLUMNS = 6

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; without it the checkpoint's own config is used."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a fine-tuning run, or an export.")
_STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; by default the newest.")
_IMAGES = flags.DEFINE_list("images", [], "Image files, or folders of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for predictions.csv and predictions.png.")
_TOP = flags.DEFINE_integer("top", 5, "Number of classes given for each image.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Number of images classified at once.")


def main() -> None:
    """Classifies the images, and writes the table and the picture."""
    if not _CHECKPOINT.value or not _IMAGES.value or not _OUTPUT.value:
        raise ValueError(f"--checkpoint, --images and --output are needed; usage: {_USAGE}")
    if _TOP.value < 1 or _BATCH_SIZE.value < 1:
        raise ValueError("--top and --batch_size must be at least 1")
    config = config_lib.load(_CONFIG.value, begins=False)
    method = config.method
    if not isinstance(method, Classification):
        raise ValueError(
            f"{_CHECKPOINT.value} was trained with config.objective.name={method.name!r}, which "
            "has no classes; fine-tune it with config.objective.name='classification'"
        )
    files = image_files(_IMAGES.value, "--images")
    loaded = load_model(_CHECKPOINT.value, _STEP.value)
    names = method.objective.class_names or tuple(map(str, range(method.num_classes)))
    top = min(_TOP.value, len(names))
    mesh = make_mesh(config.mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = shards * math.ceil(min(_BATCH_SIZE.value, len(files)) / shards)
    graphdef = graph_definition(method.init)

    def probabilities(params: PyTree, batch: Batch) -> Float[Array, "batch class"]:
        model = nnx.merge(graphdef, params)
        return jax.nn.softmax(method.logits(model, method.patches(batch), batch, None))

    compiled = jax.jit(probabilities, out_shardings=replicated(mesh))
    found: list[np.ndarray] = []
    shown: list[np.ndarray] = []
    progress = Progress(len(files), unit="image")
    with jax.set_mesh(mesh):
        params = restored_params(config, loaded, mesh)
        try:
            for start in range(0, len(files), batch_size):
                images = read_images(files[start : start + batch_size], method.data)
                padded = np.pad(images, ((0, batch_size - len(images)), *((0, 0),) * 3))
                rows = compiled(params, global_array({"image": padded}, mesh))
                found.append(np.asarray(rows)[: len(images)])
                shown += [*images[: _SHOWN - len(shown)]]
                progress.update(start + len(images))
        finally:
            progress.close()
    table = np.concatenate(found)
    order = np.argsort(-table, axis=1, kind="stable")[:, :top]
    output = Path(_OUTPUT.value).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "predictions.csv", files, names, table, order)
    draw(output / "predictions.png", shown, files, names, table, order)
    for file, row, best in zip(files, table, order[:, 0], strict=True):
        logging.info("%s: %s %.3f", file, names[best], row[best])
    print(f"{output}: predictions.csv has all {len(files)} images")


def write_csv(
    path: Path,
    files: Sequence[Path],
    names: Sequence[str],
    table: Float[np.ndarray, "image class"],
    order: Int[np.ndarray, "image rank"],
) -> None:
    """A line for each image: its file, then class and probability from the likeliest on."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        ranks = range(1, order.shape[1] + 1)
        writer.writerow(
            ["image", *(f"{part}_{rank}" for rank in ranks for part in ("class", "probability"))]
        )
        for file, row, best in zip(files, table, order, strict=True):
            writer.writerow([file, *(x for i in best for x in (names[i], f"{row[i]:.6f}"))])


def draw(
    path: Path,
    images: Sequence[UInt8[np.ndarray, "height width channel"]],
    files: Sequence[Path],
    names: Sequence[str],
    table: Float[np.ndarray, "image class"],
    order: Int[np.ndarray, "image rank"],
) -> None:
    """The first images as the model sees them, each with its likeliest classes."""
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    ranks = min(3, order.shape[1])
    figure = Figure(
        figsize=(2.2 * columns, (2.3 + 0.2 * ranks) * rows), dpi=100, layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, file, row, best in zip(axes, images, files, table, order, strict=False):
        axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        lines = [f"{_short(names[i], 18)}  {row[i]:.2f}" for i in best[:ranks]]
        axis.set_title("\n".join([_short(file.name, 24), *lines]), fontsize=8)
    FigureCanvasAgg(figure).print_png(path)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


if __name__ == "__main__":
    cli.run(main, _USAGE)
