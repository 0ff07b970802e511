"""Pre-trains a model from a config file.

    python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits

One run, from top to bottom: config -> mesh -> data -> state -> restore -> loop. Started again with
the same workdir it goes on from its last checkpoint. Exit codes: 0 finished; 1 an error while it
ran; 2 a config, dataset or checkpoint that cannot be used, found before anything was changed;
3 stopped because updates were not finite; 75 stopped by SIGTERM or Ctrl-C after saving: start it
again to go on.
"""

import contextlib
import logging as logging_lib
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree
from ml_collections import config_flags

from darl_jax import build
from darl_jax import config as config_lib
from darl_jax.checkpoint import Checkpointer, absolute_path, config_differences
from darl_jax.cli import (
    EXIT_BAD_INPUT,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_NOT_FINITE,
    flags_parser,
    one_line_errors,
)
from darl_jax.config import ConfigError, TrainConfig
from darl_jax.data import pipeline
from darl_jax.evaluation import Evaluation
from darl_jax.flops import peak_flops
from darl_jax.interrupts import StopRequest
from darl_jax.metrics import MetricWriter, Progress
from darl_jax.models import attention
from darl_jax.optimizers import learning_rate_schedule, make_optimizer
from darl_jax.sharding import batch_sharding, global_array, make_mesh
from darl_jax.step_metrics import NotFiniteError, StepMetrics
from darl_jax.train_state import TrainState, abstract_state, create_state, graph_definition
from darl_jax.train_step import TrainStep, make_train_step

_USAGE = "python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file; any key of it can be overridden as --config.key=value."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and pictures go: a folder or a bucket."
)


def check_layout(config: TrainConfig, mesh: Mesh) -> None:
    """Whether batch and heads can be split as the mesh says.

    Raises:
      ConfigError: they cannot.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = shards * config.accumulation_steps
    if config.batch_size % parts:
        raise ConfigError(
            f"config.batch_size={config.batch_size} must be a multiple of {parts}: {shards} "
            f"devices along mesh.data and mesh.fsdp, times accumulation_steps="
            f"{config.accumulation_steps}"
        )
    if config.model.num_heads % mesh.shape["tensor"]:
        raise ConfigError(
            f"config.model.num_heads={config.model.num_heads} must be a multiple of "
            f"config.mesh.tensor={mesh.shape['tensor']}"
        )


def device_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> PyTree:
    """What a step reads of a batch, on the devices."""
    return global_array({key: batch[key] for key in ("image", "mask", "replaced")}, mesh)


def abstract_batch(config: TrainConfig, mesh: Mesh) -> PyTree:
    """Shapes and shardings of `device_batch`, to compile before there is one."""
    size, sharding = config.data.image_size, batch_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)

    return {
        "image": array((size, size, config.data.channels), np.uint8),
        "mask": array((), np.bool_),
        "replaced": array((), np.bool_),
    }


def check_same_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], workdir: epath.Path
) -> None:
    """Whether a checkpoint's run is this one, by what was saved with it.

    Raises:
      ConfigError: they differ in what is learnt from which examples in which order.
    """
    differences = config_differences(saved, current, config_lib.MAY_CHANGE_ON_RESUME)
    if differences:
        raise ConfigError(
            f"{workdir} holds a checkpoint of another run: {'; '.join(differences)}. Give these "
            "keys their old values to go on with it, or another --workdir to start anew"
        )
    for difference in config_differences(saved, current, ()):
        logging.info("Changed since the checkpoint: %s", difference)


def log_attention(config: TrainConfig) -> None:
    """Says which attention kernel runs. Raises ValueError where it cannot."""
    model = config.model
    chosen = attention.choose_implementation(
        model.attention,
        platform=jax.default_backend(),
        dtype=model.dtype,
        head_dim=model.head_dim,
        tokens=math.prod(config.grid),
    )
    logging.info("Attention: %s (config.model.attention=%r)", chosen, model.attention)


def compile_step(
    step: TrainStep, state: TrainState, batch: PyTree, key: PRNGKeyArray
) -> jax.stages.Compiled:
    """The step for these shapes and layouts; it takes the state's memory for the new state."""
    began = time.monotonic()
    # Said here, for the compiler would choose other layouts for the new state than the old has.
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
    compiled = jitted.lower(state, batch, key).compile()
    logging.info("Compiled the step in %.1f s", time.monotonic() - began)
    memory = compiled.memory_analysis()
    if memory is not None:
        logging.info(
            "A device holds %.2f GiB of state and batch and %.2f GiB of activations and the like",
            memory.argument_size_in_bytes / 2**30,
            memory.temp_size_in_bytes / 2**30,
        )
    return compiled


def main(argv: list[str]) -> None:
    """Trains, and exits with one of the codes above."""
    del argv
    # JAX tells at length that it found no TPU on a machine that has none.
    logging_lib.getLogger("jax._src.xla_bridge").setLevel(logging_lib.WARNING)
    with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
        if _CONFIG.value is None or not _WORKDIR.value:
            raise ValueError(f"--config and --workdir are needed; usage: {_USAGE}")
        config = config_lib.load(_CONFIG.value)
        workdir = absolute_path(_WORKDIR.value)
        workdir.mkdir(parents=True, exist_ok=True)
    sys.exit(train(config, workdir))


def train(config: TrainConfig, workdir: epath.Path) -> int:
    """One run; returns its exit code."""
    # Mesh.
    with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
        mesh = make_mesh(config.mesh)
        check_layout(config, mesh)
        log_attention(config)
    devices = mesh.devices.flatten()
    logging.info("Mesh %s of %s", dict(mesh.shape), devices[0].device_kind)

    # Data.
    with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
        sources = pipeline.open_sources(config.data)
    steps_per_epoch = len(sources.train) / config.batch_size
    total_steps = config.total_steps or max(1, round(config.total_epochs * steps_per_epoch))

    # The order of the records follows from how many there are.
    saved_config = config_lib.to_dict(config) | {"train_records": len(sources.train)}

    # Model, objective, optimiser.
    objective = build.build_objective(config)
    build_model = build.model_builder(config)
    learning_rate = learning_rate_schedule(
        config.optimizer,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    optimizer = make_optimizer(config.optimizer, learning_rate)
    with one_line_errors(EXIT_BAD_INPUT, ValueError):
        graphdef = graph_definition(build_model)
    init_key, step_key, evaluation_key = jax.random.split(jax.random.key(config.seed), 3)

    with jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
        # State: restored where there is a checkpoint, new where there is none.
        with one_line_errors(EXIT_BAD_INPUT, ValueError, OSError):
            checkpointer = Checkpointer(
                workdir,
                keep_last=config.checkpoint.keep_last,
                keep_every=config.checkpoint.keep_every,
            )
            start_step = checkpointer.latest_step() or 0
            abstract = abstract_state(build_model, optimizer, mesh)
            if start_step > total_steps:
                raise ConfigError(
                    f"{workdir} has a checkpoint of step {start_step}, and the config ends at step "
                    f"{total_steps}; raise config.total_steps or give another --workdir"
                )
            if start_step:
                check_same_run(checkpointer.read_config(), saved_config, workdir)
                state = checkpointer.restore(abstract)
                logging.info("Goes on from step %d, restored from %s", start_step, workdir)
            else:
                state = create_state(build_model, optimizer, init_key, mesh)
        cleanup.callback(checkpointer.close)
        logging.info(
            "Parameters:\n%s",
            parameter_overview.get_parameter_overview(state.params, include_stats=False),
        )
        logging.info(
            "%d training images, %.1f steps an epoch, %d steps = %.4g epochs in all",
            len(sources.train),
            steps_per_epoch,
            total_steps,
            total_steps / steps_per_epoch,
        )

        # The step, compiled before the first batch is there.
        step_flops = build.step_flops(config)
        train_step = compile_step(
            make_train_step(
                graphdef, objective, optimizer, accumulation_steps=config.accumulation_steps
            ),
            abstract,
            abstract_batch(config, mesh),
            step_key,
        )

        # What is watched.
        is_writer = jax.process_index() == 0
        writer = MetricWriter(workdir, purge_step=start_step + 1, active=is_writer)
        cleanup.callback(writer.close)
        with one_line_errors(EXIT_BAD_INPUT, ValueError):
            evaluation = Evaluation(
                config,
                sources,
                graphdef,
                objective,
                initial_params=lambda: create_state(build_model, optimizer, init_key, mesh).params,
                mesh=mesh,
            )
        progress = Progress(
            total_steps, batch_size=config.batch_size, start_step=start_step, active=is_writer
        )
        cleanup.callback(progress.close)
        step_metrics = StepMetrics(config.max_dropped_in_a_row)

        def log(step: int) -> None:
            values = step_metrics.summary()
            images_per_second = progress.images_per_second
            flops_per_second = step_flops / config.batch_size * images_per_second
            values["learning_rate"] = float(learning_rate(step - 1))
            values["epoch"] = step / steps_per_epoch
            values["images_per_second"] = images_per_second
            values["model_tflops_per_second"] = flops_per_second / 1e12
            peak = peak_flops(devices[0])
            if peak is not None:
                values["model_flops_utilisation"] = flops_per_second / (peak * len(devices))
            writer.scalars(step, {f"train/{name}": value for name, value in values.items()})

        # Loop. `step` batches have been consumed, so the data's place needs no state of its own.
        batches = cleanup.enter_context(
            contextlib.closing(
                pipeline.train_batches(
                    sources.train,
                    config.data,
                    batch_size=config.batch_size,
                    seed=config.seed,
                    start_step=start_step,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                )
            )
        )
        stop = cleanup.enter_context(StopRequest())
        with (
            one_line_errors(EXIT_NOT_FINITE, NotFiniteError),
            one_line_errors(EXIT_ERROR, ValueError, OSError),
        ):
            for step in range(start_step + 1, total_steps + 1):
                batch = device_batch(next(batches), mesh)
                state, metrics = train_step(state, batch, step_key)
                last = step == total_steps
                # Read once: a signal that comes later in this step is for the next one.
                stopped_by = None if last else stop.signal
                ends = last or stopped_by is not None
                saves = ends or step % config.checkpoint.every_steps == 0
                logs = ends or step % config.log_every_steps == 0
                evaluates = stopped_by is None and evaluation.due(step, last=last)
                # Before anything is saved or shown all steps are known to be good.
                step_metrics.add(step, metrics, wait=saves or logs or evaluates)
                progress.update(step, step_metrics.loss)
                if logs:
                    log(step)
                with progress.pause():
                    if saves:
                        checkpointer.save(step, state, saved_config)
                    # Saved first: what a crash in an evaluator costs is the evaluation.
                    if evaluates:
                        logging.info("Step %d: training loss %.5f", step, step_metrics.loss)
                        evaluation.run(state.params, evaluation_key, step, writer, last=last)
                if stopped_by is not None:
                    checkpointer.wait()
                    progress.close()
                    print(
                        f"{stopped_by}: saved step {step} of {total_steps} in {workdir}; the same "
                        "command goes on from there",
                        file=sys.stderr,
                    )
                    return EXIT_INTERRUPTED
            checkpointer.wait()
            progress.close()
            logging.info("Finished %d steps; everything is in %s", total_steps, workdir)
            return 0


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser(_USAGE))
