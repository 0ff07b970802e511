"""From a checkpoint to a folder of images."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from darl_jax.config import ConfigError, TrainConfig
from darl_jax.data import pipeline
from darl_jax.data.base import some_records
from darl_jax.evaluators.likelihood import Likelihood
from darl_jax.evaluators.schedule import held_out, restored_params
from darl_jax.generation.files import SampleFolder
from darl_jax.generation.generator import Generator, check_can_generate, check_order
from darl_jax.generation.request import (
    Request,
    from_nothing,
    named_order,
    read_images,
    region_order,
)
from darl_jax.interchange.exporting import check_new
from darl_jax.interchange.loading import LoadedModel
from darl_jax.methods import PatchObjective
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.likelihood import interpolate_error, spread_levels
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.monitoring.progress import Progress
from darl_jax.training import build
from darl_jax.training.initialization import check_same_model
from darl_jax.training.sharding import make_mesh
from darl_jax.training.state import graph_definition


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What sample.py is asked for; its flags explain it.

    Attributes:
      sampler: the config's, with what the command line changed.
      sampler_is_asked: whether the command line changed anything.
    """

    sampler: SamplerConfig
    sampler_is_asked: bool = False
    number: int = 16
    images: tuple[str, ...] = ()
    validation_images: int = 0
    known: int | None = None
    completions: int = 7
    order: str | None = None
    region: str | None = None
    batch_size: int = 64
    seed: int = 0


def sample(config: TrainConfig, loaded: LoadedModel, wanted: Wanted, output: str) -> Path:
    """Makes the images, and returns the folder that they are in.

    Raises:
      ValueError: something that is asked for does not fit the model, or is not there.
      FileExistsError: the output is not a new or empty folder.
    """
    mesh = make_mesh(config.mesh)
    check_same_model(loaded, config)
    objective = build.build_objective(config)
    is_diffusion = isinstance(objective, Diffusion)
    sampler = wanted.sampler if is_diffusion or wanted.sampler_is_asked else None
    check_can_generate(objective, sampler)
    assert isinstance(objective, PatchObjective)  # check_can_generate says so
    folder_path = Path(output).expanduser()
    check_new(folder_path)
    request = make_request(config, wanted)
    batch_size = _batch_size(wanted, request, mesh.shape["data"] * mesh.shape["fsdp"])
    graphdef = graph_definition(build.model_builder(config))
    with jax.set_mesh(mesh):
        params = restored_params(config, loaded, mesh)
        error = None
        if sampler is not None and sampler.variance == "analytic":
            error = measured_error(config, sampler, graphdef, params, mesh)
        generator = Generator(
            graphdef,
            objective,
            grid=config.grid,
            sampler=sampler,
            order=request.order,
            known=request.known,
            error=error,
            mesh=mesh,
        )
        asked = dataclasses.asdict(wanted)
        del asked["sampler_is_asked"]
        settings: dict[str, Any] = asked | {
            "checkpoint": loaded.description,
            "sampler": None if sampler is None else dataclasses.asdict(sampler),
            "known": request.known,
            "order": None if request.order is None else request.order.tolist(),
        }
        folder = SampleFolder(folder_path, request, settings)
        given = np.repeat(request.originals, request.each, axis=0)
        logging.info("%d images, %d at once, %s", len(given), batch_size, sampler or "the mean")
        progress = Progress(len(given), unit="image")
        made = 0
        key = jax.random.key(wanted.seed)
        for images in generator.batches(
            params, key, np.arange(len(given)), given, batch_size=batch_size
        ):
            folder.add(images)
            made += len(images)
            progress.update(made)
        progress.close()
    return folder.finish()


def measured_error(
    config: TrainConfig,
    sampler: SamplerConfig,
    graphdef: nnx.GraphDef,
    params: PyTree,
    mesh: Mesh,
) -> Callable[[int], Float[np.ndarray, "step variance"]]:
    """The denoiser's mean squared error at the levels of any number of steps.

    It is measured on training images with the settings of `config.evaluation.likelihood`.
    """
    settings = dataclasses.replace(config.evaluation.likelihood, steps=max(2, sampler.steps))
    train = config.data.open_split("train_split")
    batches = functools.partial(
        pipeline.eval_batches,
        some_records(train, settings.train_images),
        config.data,
        batch_size=config.batch_size // config.accumulation_steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    objective = build.build_objective(config)
    assert isinstance(objective, Diffusion)  # others have no sampler
    likelihood = Likelihood(
        settings, graphdef, objective, training_batches=batches, test_batches=batches, mesh=mesh
    )
    logging.info("The denoiser's error is measured on %d training images", settings.train_images)
    measured = likelihood.training_error(params, jax.random.key(config.seed))

    def error(count: int) -> Float[np.ndarray, "step variance"]:
        levels = np.arange(1, count + 1) * (settings.steps / count)
        return interpolate_error(levels, spread_levels(settings.steps, settings.levels), measured)

    return error


def make_request(config: TrainConfig, wanted: Wanted) -> Request:
    """Which images, from which patches of which originals on. Raises ValueError."""
    data, grid = config.data, config.grid
    if wanted.region and (wanted.order or wanted.known is not None):
        raise ValueError("--region says which patches are kept; leave --order and --known out")
    if wanted.images and wanted.validation_images:
        raise ValueError("give --images or --validation_images, not both")
    order = named_order(wanted.order, grid) if wanted.order else None
    if not wanted.images and not wanted.validation_images:
        check_order(config.model, grid, order)
        if wanted.region or wanted.known:
            raise ValueError(
                "--region and --known keep patches of images: give --images or --validation_images"
            )
        return from_nothing(wanted.number, (data.image_size, data.image_size, data.channels), order)
    known = math.prod(grid) // 2 if wanted.known is None else wanted.known
    if wanted.region:
        order, known = region_order(wanted.region, grid)
    check_order(config.model, grid, order)
    if wanted.completions < 1:
        raise ValueError(f"--completions={wanted.completions} must be at least 1")
    if wanted.images:
        originals, names = read_images(wanted.images, data.image_size, data.channels)
    else:
        # Read one by one, also where training holds all of the split in memory.
        source = data.open_split("validation_split")
        originals = held_out(config, source, wanted.validation_images)
        names = [f"validation_{i:03d}" for i in range(len(originals))]
    return Request(originals, names, wanted.completions, known, order)


def _batch_size(wanted: Wanted, request: Request, shards: int) -> int:
    """No more than are wanted, and a multiple of the devices that they are split over."""
    if wanted.batch_size < 1 or wanted.batch_size % shards:
        raise ConfigError(
            f"--batch_size={wanted.batch_size} must be a positive multiple of the {shards} devices "
            "along mesh.data and mesh.fsdp"
        )
    wanted_images = len(request.originals) * request.each
    return min(wanted.batch_size, math.ceil(wanted_images / shards) * shards)
