r"""Generates images with a pre-trained model: from nothing, or from the first patches of images on.

    python -m darl_jax.sample --checkpoint=runs/digits --output=samples
    python -m darl_jax.sample --checkpoint=runs/digits --output=completed --validation_images=8
    python -m darl_jax.sample --checkpoint=runs/photos --output=completed --images=a.png,photos/ \
        --known=20 --completions=4 --config.objective.sampler.name=ddim \
        --config.objective.sampler.steps=50

    python -m darl_jax.sample --checkpoint=runs/ardm_text --output=texts --calls=20

The output folder gets each image as a PNG, all of them as grid.png (originals first, in a red
frame) and as arrays in samples.npz, and settings.json. Images of another size are cropped and
resized as in evaluation. Models of the squared error have no sampler and give their mean. A model
of two streams generates in any --config.model.order, and any --region anew. Models of integers
(ardm) generate pixels, text or sound, by --calls and --policy, and complete --validation_images
from their first --known positions or those of --mask. A seed gives the same images for any batch
size and number of devices. Exit codes: 0 done; 1 an error while it ran; 2 a
flag, config, image or checkpoint that cannot be used.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags, logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float, PyTree
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.data.base import Splits, some_records
from darl_jax.evaluators.base import Context
from darl_jax.evaluators.likelihood import LikelihoodConfig
from darl_jax.evaluators.samples import held_out
from darl_jax.generation.files import SampleFolder
from darl_jax.generation.generator import Generator, check_order, generating_method
from darl_jax.generation.integer_files import WRITERS
from darl_jax.generation.integers import IntegerGenerator
from darl_jax.generation.request import (
    Request,
    file_names,
    from_nothing,
    image_files,
    read_images,
    region_order,
)
from darl_jax.interchange.exporting import check_new, new_folder
from darl_jax.interchange.initialization import restored_params
from darl_jax.interchange.loading import load_run
from darl_jax.methods.ardm.method import ARDM
from darl_jax.methods.ardm.policies import check_calls, make_policy
from darl_jax.methods.darl.base import DARLMethod
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.likelihood import interpolate_error, spread_levels
from darl_jax.monitoring.progress import Progress
from darl_jax.nn.orders import fixed_order
from darl_jax.runtime import cli
from darl_jax.training.sharding import make_mesh
from darl_jax.training.state import graph_definition

_USAGE = "python -m darl_jax.sample --checkpoint=runs/digits --output=samples"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; without it the checkpoint's own config is used."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's workdir.")
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new or empty.")
_NUMBER = flags.DEFINE_integer("number", 16, "Number of unconditional samples.")
_IMAGES = flags.DEFINE_list("images", [], "Image files, or folders of them, to complete.")
_VALIDATION_IMAGES = flags.DEFINE_integer(
    "validation_images", 0, "Number of images of the validation split to complete."
)
_KNOWN = flags.DEFINE_integer(
    "known", None, "Number of patches that are kept of each image, in order; by default half."
)
_COMPLETIONS = flags.DEFINE_integer("completions", 7, "Completions per image.")
_REGION = flags.DEFINE_list(
    "region", [], "Patches to generate anew: first row, end row, first column, end column."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Number of images generated at once.")
_CALLS = flags.DEFINE_integer(
    "calls", 0, "Network calls for each stage of a model of integers; 0 makes them one by one."
)
_POLICY = flags.DEFINE_enum(
    "policy", "best", ["best", "even"], "How these calls are spread over the steps."
)
_MASK = flags.DEFINE_string(
    "mask", "", "NumPy file of booleans in the shape of an example: positions that are kept."
)
_SEED = flags.DEFINE_integer("seed", 0, "Sampling seed.")


def make_request(method: DARLMethod) -> Request:
    """The images that the flags ask for.

    Raises:
      ValueError: flags exclude each other, or do not fit the model.
    """
    data, grid = method.data, method.grid
    if _REGION.value and _KNOWN.value is not None:
        raise ValueError("--region decides which patches are kept; leave --known out")
    if _IMAGES.value and _VALIDATION_IMAGES.value:
        raise ValueError("give --images or --validation_images, not both")
    if not _IMAGES.value and not _VALIDATION_IMAGES.value:
        if _REGION.value or _KNOWN.value:
            raise ValueError(
                "--region and --known keep patches of images: give --images or --validation_images"
            )
        return from_nothing(_NUMBER.value, data.features["image"].shape)
    order, known = None, math.prod(grid) // 2 if _KNOWN.value is None else _KNOWN.value
    if _REGION.value:
        order, known = region_order(_REGION.value, grid)
    if _COMPLETIONS.value < 1:
        raise ValueError(f"--completions={_COMPLETIONS.value} must be at least 1")
    if _IMAGES.value:
        files = image_files(_IMAGES.value, "--images")
        originals, names = read_images(files, data), file_names(files)
    else:
        # Not data.open(): training may hold all images in memory, and these are few.
        split = data.open_split("validation_split")
        originals = held_out(split, _VALIDATION_IMAGES.value)
        names = [f"validation_{i:03d}" for i in range(len(originals))]
    return Request(originals, names, _COMPLETIONS.value, known, order)


def measured_error(
    method: Diffusion, graphdef: nnx.GraphDef, params: PyTree, seed: int, mesh: Mesh
) -> Callable[[int], Float[np.ndarray, "step variance"]]:
    """The denoiser's mean squared error on training images, at the levels of any number of steps.

    The analytic variance of a sampler follows from it.
    """
    settings = LikelihoodConfig(steps=max(2, method.objective.sampler.steps))
    train = method.data.open_split("train_split")
    context = Context(
        method=method,
        graphdef=graphdef,
        data=method.data,
        splits=Splits(train, train),
        batch_size=_BATCH_SIZE.value,
        mesh=mesh,
        key=jax.random.key(seed),
        initial_params=lambda: params,
    )
    likelihood = settings.build(context)
    logging.info("Measuring the denoiser's error on %d training images", settings.train_images)
    measured = likelihood.training_error(params, jax.random.key(seed))

    def error(count: int) -> Float[np.ndarray, "step variance"]:
        levels = np.arange(1, count + 1) * (settings.steps / count)
        return interpolate_error(levels, spread_levels(settings.steps, settings.levels), measured)

    return error


def kept_positions(method: ARDM) -> Bool[np.ndarray, "..."]:
    """Positions of held-out examples that --mask or --known keep, by default the first half.

    Raises:
      ValueError: a flag does not fit the model.
    """
    shape, positions = method.data_shape, method.positions
    if not _MASK.value:
        known = positions // 2 if _KNOWN.value is None else _KNOWN.value
        if not 0 <= known < positions:
            raise ValueError(f"--known={known} must be from 0 to {positions - 1}")
        return (np.arange(positions) < known).reshape(shape)
    try:
        mask = np.load(_MASK.value)
    except (OSError, ValueError) as error:
        raise ValueError(f"--mask={_MASK.value} cannot be read: {error}") from error
    if mask.shape != shape or mask.dtype != bool:
        raise ValueError(
            f"--mask={_MASK.value} has {mask.dtype}{list(mask.shape)}; it must have bool{[*shape]}"
        )
    return mask


def sample_integers(
    config: config_lib.TrainConfig, method: ARDM, checkpoint: str, output: Path
) -> None:
    """Generates or completes integers, and writes and prints what they stand for.

    Raises:
      ValueError: a flag does not fit the model.
    """
    for flag in (_NUMBER, _COMPLETIONS, _BATCH_SIZE):
        if flag.value < 1:
            raise ValueError(f"--{flag.name}={flag.value} must be at least 1")
    calls = _CALLS.value or method.positions
    check_calls(calls, method.positions)
    number, shape = _NUMBER.value, method.data_shape
    given, known = np.zeros((number, *shape), np.int32), np.zeros((number, *shape), bool)
    if _VALIDATION_IMAGES.value:
        records = some_records(method.data.open_split("validation_split"), _VALIDATION_IMAGES.value)
        examples = records.eval_examples(np.arange(len(records), dtype=np.int64))
        originals = method.integers(examples[method.data.integers.feature])
        given = np.repeat(originals, _COMPLETIONS.value, axis=0)
        known = np.broadcast_to(kept_positions(method), given.shape)
    mesh = make_mesh(config.mesh)
    loaded = load_run(checkpoint, _STEP.value)
    with jax.set_mesh(mesh):
        params = restored_params(config, loaded, mesh)
        losses = np.abs(np.asarray(params["loss_per_step"]))
        policy = make_policy(_POLICY.value, losses, calls)
        graphdef = graph_definition(method.init)
        generator = IntegerGenerator(graphdef, method, policy, mesh=mesh)
        at_once = generator.at_once(_BATCH_SIZE.value, len(given))
        total = generator.calls * math.ceil(len(given) / at_once)
        with contextlib.closing(Progress(total, unit="call")) as progress:
            key, numbers = jax.random.key(_SEED.value), np.arange(len(given))
            made = generator.batches(
                *(params, key, numbers, given, known),
                batch_size=_BATCH_SIZE.value,
                progress=progress.update,
            )
            values = method.shown(np.concatenate([*made]))
    settings = {
        "checkpoint": loaded.description,
        "seed": _SEED.value,
        "calls": generator.calls,
        "policy": _POLICY.value,
        "first_steps": policy.tolist(),
    }
    with new_folder(output) as partial:
        (partial / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
        np.savez_compressed(partial / "samples.npz", values=values, known=known)
        words = WRITERS[method.data.integers.feature](partial, values, method.data)
    print(f"{output}: {words}")


def main() -> None:
    """Generates the images."""
    if not _CHECKPOINT.value or not _OUTPUT.value:
        raise ValueError(f"--checkpoint and --output are needed; usage: {_USAGE}")
    config = config_lib.load(_CONFIG.value, begins=False)
    if isinstance(config.method, ARDM):
        output = Path(_OUTPUT.value).expanduser()
        check_new(output)
        sample_integers(config, config.method, _CHECKPOINT.value, output)
        return
    method = generating_method(config.method)
    sampler = method.objective.sampler if isinstance(method, Diffusion) else None
    output = Path(_OUTPUT.value).expanduser()
    check_new(output)  # before a large checkpoint is read
    loaded = load_run(_CHECKPOINT.value, _STEP.value)
    trained_order = loaded.model["order"]
    if method.model.order != trained_order:
        own = dataclasses.replace(method.model, order=trained_order)
        trained = dataclasses.replace(method, model=own)
        check_order(trained, fixed_order(method.model.order, method.grid))
    request = make_request(method)
    check_order(method, request.order)

    mesh = make_mesh(config.mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if _BATCH_SIZE.value < 1:
        raise ValueError(f"--batch_size={_BATCH_SIZE.value} must be at least 1")
    given = np.repeat(request.originals, request.each, axis=0)
    batch_size = shards * math.ceil(min(_BATCH_SIZE.value, len(given)) / shards)
    graphdef = graph_definition(method.init)
    with jax.set_mesh(mesh):
        params = restored_params(config, loaded, mesh)
        error = None
        if isinstance(method, Diffusion) and method.objective.sampler.variance == "analytic":
            error = measured_error(method, graphdef, params, config.seed, mesh)
        generator = Generator(
            graphdef,
            method,
            sampler=sampler,
            order=request.order,
            known=request.known,
            error=error,
            mesh=mesh,
        )
        settings = {
            "checkpoint": loaded.description,
            "sampler": None if sampler is None else dataclasses.asdict(sampler),
            "seed": _SEED.value,
            "known": request.known,
            "order": None if request.order is None else request.order.tolist(),
        }
        logging.info("%d images, %d at once, %s", len(given), batch_size, sampler or "the mean")
        key, numbers = jax.random.key(_SEED.value), np.arange(len(given))
        progress = Progress(len(given), unit="image")
        with new_folder(output) as partial, contextlib.closing(progress):
            folder = SampleFolder(partial, request, json.dumps(settings, indent=1))
            for images in generator.batches(params, key, numbers, given, batch_size=batch_size):
                folder.add(images)
                progress.update(folder.count)
            folder.finish()
    print(f"{output}: grid.png has all of them")


if __name__ == "__main__":
    cli.run(main, _USAGE)
