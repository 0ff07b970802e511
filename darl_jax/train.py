"""Pre-trains a model from a config file.

    python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits

One run, from top to bottom: config -> mesh -> data -> state -> restore -> loop. Started again with
the same workdir it goes on from its last checkpoint. Exit codes: 0 finished; 1 an error while it
ran; 2 a config, dataset or checkpoint that cannot be used, found before anything was changed;
3 stopped because updates were not finite; 75 stopped by SIGTERM or Ctrl-C after saving: start it
again to go on; 130 and 143 the same before there was anything to save, or a second Ctrl-C.
"""

import contextlib
import logging as logging_lib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import config_flags

from darl_jax import build
from darl_jax import config as config_lib
from darl_jax.checkpoint import Checkpointer, absolute_path, config_differences
from darl_jax.cli import (
    EXIT_BAD_INPUT,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_NOT_FINITE,
    USER_ERRORS,
    flags_parser,
    one_line_errors,
)
from darl_jax.config import ConfigError, TrainConfig
from darl_jax.data import pipeline
from darl_jax.evaluation import Evaluation
from darl_jax.flops import peak_flops
from darl_jax.interrupts import StopRequest
from darl_jax.metrics import MetricWriter, Progress, read_metrics
from darl_jax.models import attention
from darl_jax.optimizers import learning_rate_schedule, make_optimizer
from darl_jax.sharding import global_array, make_mesh
from darl_jax.step_metrics import NotFiniteError, StepMetrics
from darl_jax.train_state import (
    abstract_state,
    create_params,
    create_state,
    graph_definition,
)
from darl_jax.train_step import compile_step, make_train_step

_USAGE = "python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file; any key of it can be overridden as --config.key=value."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and pictures go: a folder or a bucket."
)


def device_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> PyTree:
    """What a step reads of a batch, on the devices."""
    return global_array({key: batch[key] for key in ("image", "mask", "replaced")}, mesh)


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


def check_length(start_step: int, total_steps: int, workdir: epath.Path) -> None:
    """Whether a checkpoint lies within the run. Raises ConfigError."""
    if start_step > total_steps:
        raise ConfigError(
            f"{workdir} has a checkpoint of step {start_step}, and the config ends at step "
            f"{total_steps}; raise config.total_steps or give another --workdir"
        )


def has_evaluation(workdir: epath.Path, step: int) -> bool:
    """Whether anything but the training metrics was written at a step."""
    return any(
        name.startswith(("validation/", "probe/"))
        for line in read_metrics(workdir)
        if line["step"] == step
        for name in line
    )


def log_attention(config: TrainConfig) -> None:
    """Says which attention kernel runs. Raises ValueError where it cannot."""
    model = config.model
    chosen = attention.choose_implementation(
        model.attention,
        device=jax.devices()[0],
        dtype=model.dtype,
        head_dim=model.head_dim,
        tokens=math.prod(config.grid),
    )
    logging.info("Attention: %s (config.model.attention=%r)", chosen, model.attention)


def log_memory(step: jax.stages.Compiled) -> None:
    """Says what the compiled step takes on a device, where the compiler tells."""
    memory = step.memory_analysis()
    if memory is not None:
        logging.info(
            "A device holds %.2f GiB of state and batch and %.2f GiB of activations and the like",
            memory.argument_size_in_bytes / 2**30,
            memory.temp_size_in_bytes / 2**30,
        )


@contextlib.contextmanager
def advice_on_memory() -> Iterator[None]:
    """Says what to change where a device runs out of memory.

    Raises:
      MemoryError: a device did.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(
            f"a device has too little memory ({str(error).splitlines()[0]}). Lower "
            "config.batch_size, raise config.accumulation_steps or config.mesh.fsdp, or set "
            "config.model.remat to 'dots' or 'full'"
        ) from error


def main(argv: list[str]) -> None:
    """Trains, and exits with one of the codes above."""
    del argv
    # JAX tells at length that it found no TPU on a machine that has none.
    logging_lib.getLogger("jax._src.xla_bridge").setLevel(logging_lib.WARNING)
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        if _CONFIG.value is None or not _WORKDIR.value:
            raise ValueError(f"--config and --workdir are needed; usage: {_USAGE}")
        config = config_lib.load(_CONFIG.value)
        workdir = absolute_path(_WORKDIR.value)
        make_workdir(workdir)
    sys.exit(train(config, workdir))


def make_workdir(workdir: epath.Path) -> None:
    """Makes the folder. Raises OSError, naming the flag."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--workdir={workdir} cannot be used: {error.strerror or error}") from error


def train(config: TrainConfig, workdir: epath.Path) -> int:
    """One run; returns its exit code."""
    with StopRequest() as stop, contextlib.ExitStack() as cleanup:
        with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS), advice_on_memory():
            # Mesh.
            mesh = make_mesh(config.mesh)
            build.check_layout(config, mesh)
            log_attention(config)
            cleanup.enter_context(jax.set_mesh(mesh))
            devices = mesh.devices.flatten()
            logging.info("Mesh %s of %s", dict(mesh.shape), devices[0].device_kind)

            # Data.
            sources = pipeline.open_sources(config.data)
            steps_per_epoch = len(sources.train) / config.batch_size
            total_steps = config.total_steps or max(1, round(config.total_epochs * steps_per_epoch))
            logging.info(
                "%d training images, %.1f steps an epoch, %d steps = %.4g epochs in all",
                len(sources.train),
                steps_per_epoch,
                total_steps,
                total_steps / steps_per_epoch,
            )

            # Model, objective, optimiser.
            objective = build.build_objective(config)
            build_model = build.model_builder(config)
            graphdef = graph_definition(build_model)
            learning_rate = learning_rate_schedule(
                config.optimizer,
                batch_size=config.batch_size,
                steps_per_epoch=steps_per_epoch,
                total_steps=total_steps,
            )
            optimizer = make_optimizer(config.optimizer, learning_rate)
            init_key, step_key, evaluation_key = jax.random.split(jax.random.key(config.seed), 3)

            # State: restored where there is a checkpoint, new where there is none.
            checkpointer = Checkpointer(
                workdir,
                keep_last=config.checkpoint.keep_last,
                keep_every=config.checkpoint.keep_every,
            )
            cleanup.callback(checkpointer.close)
            # The order of the records follows from how many there are.
            saved_config = config_lib.to_dict(config) | {"train_records": len(sources.train)}
            start_step = checkpointer.latest_step() or 0
            abstract = abstract_state(build_model, optimizer, mesh)
            if start_step:
                check_same_run(checkpointer.read_config(), saved_config, workdir)
                check_length(start_step, total_steps, workdir)
                state = checkpointer.restore(abstract)
                logging.info("Goes on from step %d, restored from %s", start_step, workdir)
            else:
                state = create_state(build_model, optimizer, init_key, mesh)
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            logging.info("Parameters:\n%s", overview)

            # The step, compiled before the first batch is there.
            step_function = make_train_step(
                graphdef, objective, optimizer, accumulation_steps=config.accumulation_steps
            )
            began = time.monotonic()
            train_step = compile_step(
                step_function, abstract, build.abstract_batch(config, mesh), step_key
            )
            logging.info("Compiled the step in %.1f s", time.monotonic() - began)
            log_memory(train_step)

            # What is watched.
            is_writer = jax.process_index() == 0
            writer = MetricWriter(workdir, purge_step=start_step + 1, active=is_writer)
            cleanup.callback(writer.close)
            evaluation = Evaluation(
                config,
                sources,
                graphdef,
                objective,
                initial_params=lambda: create_params(build_model, init_key, mesh),
                mesh=mesh,
            )
            step_metrics = StepMetrics(config.max_dropped_in_a_row)
            step_flops = build.step_flops(config)
            peak = peak_flops(devices[0])

            # `step` batches have been consumed, so the data's place needs no state of its own.
            batches = pipeline.train_batches(
                sources.train,
                config.data,
                batch_size=config.batch_size,
                seed=config.seed,
                start_step=start_step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            cleanup.callback(batches.close)

        progress = Progress(
            total_steps, batch_size=config.batch_size, start_step=start_step, active=is_writer
        )

        def log(step: int) -> None:
            values = step_metrics.summary()
            images_per_second = progress.images_per_second
            flops_per_second = step_flops / config.batch_size * images_per_second
            # Dropped updates do not count for the schedule.
            updates = step - 1 - int(values["dropped_updates"])
            values["learning_rate"] = float(learning_rate(max(updates, 0)))
            values["epoch"] = step / steps_per_epoch
            values["images_per_second"] = images_per_second
            values["model_tflops_per_second"] = flops_per_second / 1e12
            if peak is not None:
                values["model_flops_utilisation"] = flops_per_second / (peak * len(devices))
            writer.scalars(step, {f"train/{name}": value for name, value in values.items()})

        with (
            one_line_errors(EXIT_NOT_FINITE, NotFiniteError),
            one_line_errors(EXIT_ERROR, *USER_ERRORS),
            advice_on_memory(),
            contextlib.closing(progress),
        ):
            stop.begin_training()
            for step in range(start_step + 1, total_steps + 1):
                batch = device_batch(next(batches), mesh)
                state, metrics = train_step(state, batch, step_key)
                last = step == total_steps
                # Read once: a signal that comes later in this step is for the next one.
                stopped_by = None if last else stop.signal
                evaluates = stopped_by is None and evaluation.due(step, last=last)
                ends = last or stopped_by is not None
                # With each evaluation, too: it may take longer than a preempted run is given.
                saves = ends or evaluates or step % config.checkpoint.every_steps == 0
                logs = ends or step % config.log_every_steps == 0
                # Before anything is saved or shown all steps are known to be good.
                step_metrics.add(step, metrics, wait=saves or logs)
                progress.update(step, step_metrics.loss)
                if logs:
                    log(step)
                with progress.pause():
                    if saves:
                        checkpointer.save(step, state, saved_config)
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
            if start_step == total_steps and not has_evaluation(workdir, total_steps):
                # The last evaluation of a run that was killed between its last save and its end.
                evaluation.run(state.params, evaluation_key, total_steps, writer, last=True)
        logging.info("Finished %d steps; everything is in %s", total_steps, workdir)
        return 0


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser(_USAGE))
