"""Trains a model from a config file: pre-training, fine-tuning, probes.

    python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits

One run, from top to bottom: config -> mesh -> data -> state -> restore -> loop. A new run may take
its parameters from a checkpoint (`config.init`). Started again with the same workdir it goes on
from its own last checkpoint. Exit codes: 0 finished; 1 an error while it ran; 2 a config, dataset
or checkpoint that cannot be used, found before training began; 3 stopped because updates were not
finite; 75 stopped by SIGTERM or Ctrl-C after saving: start it again to go on; 130 and 143 the same
before there was anything to save, or a second Ctrl-C.
"""

import contextlib
import logging as logging_lib
import sys
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

from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.data import pipeline
from darl_jax.evaluators.schedule import Evaluation, made
from darl_jax.monitoring.clock import Clock, history_until
from darl_jax.monitoring.example_log import ExampleLog
from darl_jax.monitoring.phases import phase
from darl_jax.monitoring.profiling import ProfileWindow
from darl_jax.monitoring.run_log import RunLog
from darl_jax.monitoring.writers import MetricWriter
from darl_jax.nn import attention
from darl_jax.nn.flops import peak_flops
from darl_jax.runtime import cluster, compilation
from darl_jax.runtime.cli import (
    BAD_INPUT,
    EXIT_BAD_INPUT,
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_NOT_FINITE,
    USER_ERRORS,
    advice_on_memory,
    flags_parser,
    one_line_errors,
)
from darl_jax.runtime.signals import StopRequest
from darl_jax.training import build
from darl_jax.training.checkpoint import Checkpointer, SaveTimeoutError, absolute_path
from darl_jax.training.checkpoint.resuming import check_length, check_same_run, without_own_keys
from darl_jax.training.initialization import initialise, load_initial
from darl_jax.training.optimizers import learning_rate_schedule
from darl_jax.training.sharding import global_array, make_mesh
from darl_jax.training.state import abstract_state, create_params, create_state, graph_definition
from darl_jax.training.step import lower_step, make_train_step
from darl_jax.training.step_metrics import NotFiniteError, StepMetrics

_USAGE = "python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file; any key of it can be overridden as --config.key=value."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where checkpoints, metrics and pictures go: a folder or a bucket."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes: host:port where process 0 awaits the others."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")

_GOES_ON = "the same command goes on from there"


def device_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, *, stop: bool) -> PyTree:
    """What a step reads of a batch, on the devices, and whether this process is to stop."""
    read = {key: batch[key] for key in ("image", "label", "mask", "replaced")}
    return global_array(read | {"stop": np.full(len(batch["mask"]), stop)}, mesh)


def choose_attention(config: TrainConfig) -> str:
    """Says and returns which attention kernel runs. Raises ValueError where it cannot."""
    model = config.model
    chosen = attention.choose_implementation(
        model.attention,
        device=jax.devices()[0],
        dtype=model.dtype,
        head_dim=model.head_dim,
        tokens=config.tokens,
    )
    logging.info("Attention: %s (config.model.attention=%r)", chosen, model.attention)
    return chosen


@contextlib.contextmanager
def leaving_hung_saves() -> Iterator[None]:
    """Ends the run at once where a file system hangs, for its threads would never let it end."""
    try:
        yield
    except SaveTimeoutError as error:
        cluster.leave_together(EXIT_ERROR, f"error: {error}")


@contextlib.contextmanager
def closing(checkpointer: Checkpointer) -> Iterator[None]:
    """Waits for the last save; where something has failed already, that is what is told."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            checkpointer.close()
        raise
    with one_line_errors(EXIT_ERROR, OSError), leaving_hung_saves():
        checkpointer.close()


def main(argv: list[str]) -> None:
    """Trains, and exits with one of the codes above."""
    del argv
    # JAX tells at length that it found no TPU on a machine that has none.
    logging_lib.getLogger("jax._src.xla_bridge").setLevel(logging_lib.WARNING)
    with StopRequest(cluster.leave_together) as stop, contextlib.ExitStack() as run:
        with one_line_errors(EXIT_BAD_INPUT, ValueError), one_line_errors(EXIT_ERROR, OSError):
            run.enter_context(
                cluster.member(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
            )
        with one_line_errors(EXIT_ERROR, OSError), one_line_errors(EXIT_BAD_INPUT, *BAD_INPUT):
            if _CONFIG.value is None or not _WORKDIR.value:
                raise ValueError(f"--config and --workdir are needed; usage: {_USAGE}")
            config = config_lib.load(_CONFIG.value)
            workdir = absolute_path(_WORKDIR.value)
            make_workdir(workdir)
            compilation.keep_in(workdir)
        if jax.process_index() > 0 and logging.get_verbosity() == logging.INFO:
            logging.set_verbosity(logging.WARNING)  # Process 0 speaks for all.
        code = train(config, workdir, stop)
        stop.end_training()
        sys.exit(code)


def make_workdir(workdir: epath.Path) -> None:
    """Makes the folder. Raises OSError, naming the flag."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"--workdir={workdir} cannot be used: {error.strerror or error}"
        raise type(error)(reason) from error


def train(config: TrainConfig, workdir: epath.Path, stop: StopRequest) -> int:
    """One run; returns its exit code.

    Args:
      config: what is trained.
      workdir: where everything is kept.
      stop: knows of SIGTERM and Ctrl-C.
    """
    with contextlib.ExitStack() as cleanup, cluster.failing_together():
        with (
            one_line_errors(EXIT_ERROR, OSError),
            one_line_errors(EXIT_BAD_INPUT, *BAD_INPUT),
            advice_on_memory(),
        ):
            # Mesh.
            mesh = make_mesh(config.mesh)
            build.check_layout(config, mesh)
            choose_attention(config)
            cleanup.enter_context(jax.set_mesh(mesh))
            logging.info("Mesh %s of %s", dict(mesh.shape), jax.devices()[0].device_kind)
            is_writer = jax.process_index() == 0

            # Data.
            with phase("Opening the data"):
                sources = config.data.open()
            config = build.with_classes(
                config, len(sources.train.class_names), sources.train.dataset
            )
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
            optimizer = build.build_optimizer(config, learning_rate)
            init_key, step_key, evaluation_key = jax.random.split(jax.random.key(config.seed), 3)

            # The order of the records follows from which there are.
            records = f"{len(sources.train)}, {sources.train.fingerprint()}"
            saved_config = config_lib.to_dict(config) | {"train_records": records}
            cluster.check_alike(without_own_keys(saved_config), "keys of the config, or records,")
            cluster.check_shared(workdir, f"--workdir={workdir}")

            # State: restored where there is a checkpoint, new where there is none.
            checkpointer = Checkpointer(
                workdir,
                keep_last=config.checkpoint.keep_last,
                keep_every=config.checkpoint.keep_every,
                timeout_seconds=config.checkpoint.timeout_seconds,
            )
            cleanup.enter_context(closing(checkpointer))

            def check(saved: Mapping[str, Any], step: int) -> None:
                check_same_run(saved, saved_config, workdir)
                check_length(step, total_steps, workdir)

            averages = config.ema_decay > 0
            abstract = abstract_state(build_model, optimizer, mesh, ema=averages)
            with phase("Reading the last checkpoint"):
                restored = checkpointer.restore_latest(abstract, check)
            if restored is not None:
                state, start_step = restored
                logging.info("Goes on from step %d, restored from %s", start_step, workdir)
            else:
                initial = load_initial(config) if config.init.checkpoint else None
                state = create_state(build_model, optimizer, init_key, mesh, ema=averages)
                start_step = 0
                if initial is not None:
                    state = initialise(state, initial, drop=config.init.drop)
            history = history_until(workdir, start_step) if is_writer else []
            clock = Clock(history)
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            logging.info("Parameters:\n%s", overview)

            # The step, compiled before the first batch is there.
            with clock("compile"), phase("Compiling the step"):
                lowered = lower_step(
                    make_train_step(
                        graphdef,
                        objective,
                        optimizer,
                        accumulation_steps=config.accumulation_steps,
                        ema_decay=config.ema_decay,
                    ),
                    abstract,
                    build.abstract_batch(config, mesh),
                    step_key,
                )
                train_step = compilation.compile_step(lowered)

            # What is watched.
            writer = MetricWriter(workdir, purge_step=start_step + 1, active=is_writer)
            cleanup.callback(writer.close)
            run_log = RunLog(
                writer=writer,
                clock=clock,
                total_steps=total_steps,
                batch_size=config.batch_size,
                steps_per_epoch=steps_per_epoch,
                flops_per_example=build.step_flops(config) // config.batch_size,
                peak_flops=peak_flops(jax.devices()[0]),
                learning_rate=learning_rate,
            )
            cleanup.callback(run_log.close)
            step_metrics = StepMetrics(config.max_dropped_in_a_row)
            evaluation = Evaluation(
                config,
                sources,
                graphdef,
                objective,
                initial_params=lambda: create_params(build_model, init_key, mesh),
                mesh=mesh,
            )
            profile = ProfileWindow(
                workdir,
                first_step=config.profile.first_step,
                num_steps=config.profile.num_steps,
                wait=lambda: jax.block_until_ready(state),
                active=is_writer,
            )
            cleanup.callback(profile.close)
            examples = ExampleLog(
                workdir,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                active=config.log_examples,
            )
            cleanup.callback(examples.close)

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

        def evaluate(step: int) -> None:
            """For which everything is saved, for it may take longer than a stopped run is given."""
            with clock("checkpoint"):
                checkpointer.wait()
            writer.flush()
            message = f"step {step} of {total_steps} is saved in {workdir}; {_GOES_ON}"
            with clock("evaluation"), stop.all_saved(message):
                evaluation.run(
                    state.evaluated_params, evaluation_key, step, writer, last=step == total_steps
                )
            run_log.note(step)

        with (
            one_line_errors(EXIT_NOT_FINITE, NotFiniteError),
            one_line_errors(EXIT_ERROR, *USER_ERRORS),
            leaving_hung_saves(),
            advice_on_memory(),
        ):
            stop.begin_training()
            # What a run that was killed in the middle of an evaluation still owes.
            owed = start_step > 0 and evaluation.due(start_step, last=start_step == total_steps)
            owed = owed and not cluster.agree_on(made(history, start_step))
            if owed or start_step < total_steps:
                run_log.begin(start_step)
            if owed:
                evaluate(start_step)
            for step in range(start_step + 1, total_steps + 1):
                profile.before_step(step)
                with clock("input"):
                    rows = next(batches)
                examples.add(step, rows["index"])
                batch = device_batch(rows, mesh, stop=stop.signal is not None)
                state, metrics = train_step(state, batch, step_key)
                with clock("device"):
                    step_metrics.add(step, metrics)
                last = step == total_steps
                stops = step_metrics.stop_requested and not last
                evaluates = evaluation.due(step, last=last) and not stops
                saves = last or stops or evaluates or step % config.checkpoint.every_steps == 0
                logs = last or stops or step % config.log_every_steps == 0
                if saves or logs:
                    # Before anything is saved or shown all steps are known to be good.
                    with clock("device"):
                        step_metrics.wait()
                run_log.show(step, step_metrics.loss)
                if logs:
                    run_log.write(step, step_metrics.summary())
                if saves:
                    with clock("checkpoint"):
                        checkpointer.save(step, state, saved_config)
                    run_log.note(step)
                if evaluates:
                    logging.info("Step %d: training loss %.5f", step, step_metrics.loss)
                    evaluate(step)
                if stops:
                    with clock("checkpoint"):
                        checkpointer.wait()
                    run_log.note(step)
                    run_log.close()
                    if is_writer:
                        told = stop.signal or "another process was told to stop"
                        saved = f"saved step {step} of {total_steps} in {workdir}"
                        print(f"{told}: {saved}; {_GOES_ON}", file=sys.stderr)
                    return EXIT_INTERRUPTED
            with clock("checkpoint"):
                checkpointer.wait()
            if owed or start_step < total_steps:
                run_log.note(total_steps, finished=True)
        logging.info("Finished %d steps; everything is in %s", total_steps, workdir)
        return 0


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser(_USAGE))
