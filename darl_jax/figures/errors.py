"""Draws the error by position in the sequence and in the image (Figures 10, 12 and 14).

python -m darl_jax.figures.errors runs/raster runs/spiral --output=errors.png
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from matplotlib.figure import Figure

from darl_jax import config as config_lib
from darl_jax.data.base import some_records
from darl_jax.data.pipeline import eval_batches
from darl_jax.evaluators.pictures import mean_errors
from darl_jax.figures.program import COLORS, by_name, new_figure, run_program
from darl_jax.interchange.initialization import restored_params
from darl_jax.interchange.loading import load_run
from darl_jax.interchange.saved_config import get_config
from darl_jax.methods.base import Batch
from darl_jax.methods.images import PatchMethod
from darl_jax.monitoring.drawing import plain
from darl_jax.training.sharding import MeshConfig, global_array, make_mesh
from darl_jax.training.state import graph_definition

_BATCH = 100


class Errors(NamedTuple):
    """Mean squared errors of a run on held-out images."""

    name: str
    order: str
    in_sequence: Float[np.ndarray, " patch"]
    in_image: Float[np.ndarray, "rows columns"]
    images: int  # number of images in the means


def measure(name: str, workdir: str, *, images: int, data_dir: str | None = None) -> Errors:
    """Measures the errors of a run's last checkpoint, on one device.

    Args:
      images: number of images of the validation split, at most.
      data_dir: replaces the run's own, if given.

    Raises:
      ValueError: the method does not predict patches, or there is no image.
      FileNotFoundError: there is no checkpoint.
    """
    loaded = load_run(workdir)
    config = config_lib.load(get_config(workdir), begins=False)
    method = config.method
    if not isinstance(method, PatchMethod):
        raise ValueError(
            f"{workdir} was trained with objective.name={method.name!r}, which predicts no patches"
        )
    data = dataclasses.replace(
        method.data, num_workers=0, data_dir=data_dir or method.data.data_dir
    )
    graphdef = graph_definition(method.init)

    @jax.jit
    def errors(params: PyTree, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Array]:
        predicted = method.predict(nnx.merge(graphdef, params), batch, key)
        return mean_errors(predicted.error, predicted.order, batch["mask"])

    records = some_records(data.open_split("validation_split"), images)
    total, count = np.zeros((2, math.prod(method.grid))), 0
    # The run's own mesh may have more devices than are here.
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = restored_params(config, loaded, mesh)
        for i, batch in enumerate(eval_batches(records, data, batch_size=_BATCH)):
            number = int(batch["mask"].sum())
            if number:
                arrays = global_array(dict(batch), mesh)
                means = jax.device_get(errors(params, arrays, jax.random.key(i)))
                total += number * np.stack(means)
                count += number
    if not count:
        raise ValueError(f"the validation split of {workdir} holds no image")
    in_image, in_sequence = total / count
    two_stream = getattr(method.objective, "two_stream", False)
    order = method.model.order.title + (", two streams" if two_stream else "")
    return Errors(name, order, in_sequence, in_image.reshape(method.grid), count)


def errors_figure(runs: Sequence[Errors]) -> Figure:
    """Draws a line for each run along its own sequence, and below a map of the image for each."""
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    heights = 3.8 + 0.2 * -(-len(runs) // 2), 2.9 * rows  # the legend has two columns
    figure = new_figure(11.0, sum(heights))
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    upper, lower = parts
    axes = upper.subplots()
    for run, color in zip(runs, itertools.cycle(COLORS), strict=False):
        position = np.arange(1, len(run.in_sequence) + 1)
        label = f"{run.name} ({run.order}): mean {np.nanmean(run.in_sequence):.4f}"
        axes.plot(position, run.in_sequence, color=color, linewidth=1.3, label=label)
    counts = sorted({run.images for run in runs})
    axes.set_title(f"Mean over {' or '.join(map(str, counts))} validation images", fontsize=11)
    axes.set(xlabel="position in the run's own sequence", ylabel="squared error")
    axes.set_ylim(bottom=0)
    plain(axes)
    upper.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    largest = max(float(np.nanmax(run.in_image)) for run in runs)
    panels = lower.subplots(rows, columns, squeeze=False)
    for panel, run in zip(panels.ravel(), runs, strict=False):
        shown = panel.imshow(run.in_image, cmap="magma", vmin=0, vmax=largest)
        panel.set_title(f"{run.name}\n{run.order}", fontsize=9)
        panel.set(xticks=[], yticks=[])
    for panel in panels.ravel()[len(runs) :]:
        panel.set_axis_off()
    lower.colorbar(shown, ax=panels, label="squared error")
    return figure


def draw(workdirs: Sequence[str], *, images: int, data_dir: str | None) -> Figure:
    """Measures and draws the errors of each run. Raises as `measure`."""
    if images < 1:
        raise ValueError(f"--images={images} must be at least 1")
    runs = by_name(workdirs)
    return errors_figure([measure(*run, images=images, data_dir=data_dir) for run in runs])


if __name__ == "__main__":
    run_program(
        draw,
        "python -m darl_jax.figures.errors runs/raster runs/spiral --output=errors.png",
        output="errors.png",
        workdirs=True,
        images=flags.DEFINE_integer("images", 1000, "Largest number of validation images."),
        data_dir=flags.DEFINE_string("data_dir", None, "Replaces each run's config.data.data_dir."),
    )
