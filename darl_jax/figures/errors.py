"""Draws where in the sequence and in the image runs err (Figures 10, 12 and 14).

python -m darl_jax.figures.errors runs/raster runs/spiral --output=errors.png
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags
from flax import nnx
from jaxtyping import Array, Float, PyTree
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darl_jax import build
from darl_jax.cli import EXIT_BAD_INPUT, USER_ERRORS, one_line_errors
from darl_jax.data.memory import some_records
from darl_jax.data.pipeline import eval_batches, open_source
from darl_jax.evaluation import read_config, restored_params
from darl_jax.evaluators.pictures import mean_errors
from darl_jax.interchange.loading import load_model
from darl_jax.objectives import Batch, PatchObjective
from darl_jax.sharding import global_array, make_mesh
from darl_jax.train_state import graph_definition

_BATCH = 100


class Errors(NamedTuple):
    """Mean squared errors of a run's predictions of held-out images.

    Attributes:
      name: of the run.
      order: of its patches, in words.
      in_sequence: by the place in the sequence.
      in_image: by row and column.
      images: how many.
    """

    name: str
    order: str
    in_sequence: Float[np.ndarray, " patch"]
    in_image: Float[np.ndarray, "rows columns"]
    images: int


def measure(workdir: str, images: int, data_dir: str | None = None) -> Errors:
    """The errors of a run's last checkpoint.

    Args:
      workdir: of the run.
      images: of its validation split, at most.
      data_dir: in the place of the run's own.

    Raises:
      ValueError: it does not predict patches, or there is no image.
      FileNotFoundError: there is no checkpoint.
    """
    loaded = load_model(workdir)
    config = read_config(None, loaded)
    data = dataclasses.replace(
        config.data, num_workers=0, data_dir=data_dir or config.data.data_dir
    )
    objective = build.build_objective(config)
    if not isinstance(objective, PatchObjective):
        raise ValueError(
            f"{workdir} was trained with objective.name={config.objective.name!r}, which predicts "
            "no patches"
        )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    graphdef = graph_definition(build.model_builder(config))

    @jax.jit
    def errors(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
        predicted = objective.predict(nnx.merge(graphdef, params), batch, key)
        return mean_errors(predicted.error, predicted.order, batch["mask"])

    source = open_source(data, data.validation_split, "validation_split")
    records = some_records(source, images)
    total, count = np.zeros((2, config.grid[0] * config.grid[1])), 0
    with jax.set_mesh(mesh):
        params = restored_params(config, loaded, mesh)
        for i, batch in enumerate(eval_batches(records, data, batch_size=_BATCH)):
            arrays = global_array(dict(batch), mesh)
            number = int(batch["mask"].sum())
            total += number * np.stack(jax.device_get(errors(params, arrays, jax.random.key(i))))
            count += number
    if not count:
        raise ValueError(f"the validation split of {workdir} holds no image")
    in_image, in_sequence = total / count
    name = pathlib.PurePath(workdir).name
    return Errors(name, config.model.order.title, in_sequence, in_image.reshape(config.grid), count)


def errors_figure(runs: Sequence[Errors]) -> Figure:
    """A line for each run along its own sequence, and under them a map of the image for each."""
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(3.2 * max(columns, 3), 3.6 + 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=(3.4, 2.8 * rows))
    upper, lower = parts
    line = upper.subplots()
    for run in runs:
        place = np.arange(1, len(run.in_sequence) + 1)
        label = f"{run.name} ({run.order}): mean {run.in_sequence.mean():.4f}"
        line.plot(place, run.in_sequence, linewidth=1.3, label=label)
    line.set(xlabel="place in the run's own sequence", ylabel="squared error")
    line.set_ylim(bottom=0)
    line.grid(color="0.92")
    line.spines[["top", "right"]].set_visible(False)
    line.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    largest = max(float(run.in_image.max()) for run in runs)
    panels = lower.subplots(rows, columns, squeeze=False)
    shown = None
    for panel, run in zip(panels.ravel(), runs, strict=False):
        shown = panel.imshow(run.in_image, cmap="magma", vmin=0, vmax=largest)
        panel.set_title(f"{run.name}\n{run.order}", fontsize=9)
        panel.set(xticks=[], yticks=[])
    for panel in panels.ravel()[len(runs) :]:
        panel.set_axis_off()
    if shown is not None:
        lower.colorbar(shown, ax=panels, label="squared error")
    return figure


def main(argv: Sequence[str]) -> None:
    """Measures each run and writes one picture."""
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        if len(argv) < 2:
            raise ValueError("name one workdir or several, as in runs/raster runs/spiral")
        if flags.FLAGS.images < 1:
            raise ValueError(f"--images={flags.FLAGS.images} must be at least 1")
        runs = [measure(path, flags.FLAGS.images, flags.FLAGS.data_dir) for path in argv[1:]]
        errors_figure(runs).savefig(flags.FLAGS.output, dpi=90)
    print(f"wrote {flags.FLAGS.output}")


if __name__ == "__main__":
    flags.DEFINE_integer("images", 1000, "Of the validation split, at most.")
    flags.DEFINE_string("data_dir", None, "In the place of each run's config.data.data_dir.")
    flags.DEFINE_string("output", "errors.png", "The picture's file, a PNG.")
    app.run(main)
