"""Trains a model from a config file: pre-training, fine-tuning, probes.

    python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits

One run, from top to bottom: config -> mesh -> data -> state -> restore -> loop. A new run may take
its parameters from a checkpoint (`config.init`). Started again with the same workdir it goes on
from its own last checkpoint. README.md has the exit codes.
"""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import optax
from absl import flags, logging
from clu import parameter_overview
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.config.resuming import check_same_run, without_own_keys
from darl_jax.data import pipeline
from darl_jax.evaluators.base import Context
from darl_jax.evaluators.schedule import Evaluation
from darl_jax.interchange.initialization import initialize, load_initial
from darl_jax.monitoring.clock import Clock, history_until
from darl_jax.monitoring.profiling import ProfileWindow
from darl_jax.monitoring.run_log import RunLog
from darl_jax.monitoring.writers import MetricWriter
from darl_jax.runtime import cli, cluster, compilation, lock
from darl_jax.runtime.chips import peak_flops
from darl_jax.runtime.signals import StopRequest
from darl_jax.training.checkpoint import Check, Checkpointer, SaveTimeoutError, writable_path
from darl_jax.training.checkpoint.reading import FOLDER
from darl_jax.training.optimizers import build_optimizer, learning_rate_schedule
from darl_jax.training.sharding import check_batch, make_mesh
from darl_jax.training.state import (
    TrainState,
    abstract_state,
    create_params,
    create_state,
    graph_definition,
)
from darl_jax.training.step import abstract_batch, device_batch, lower_step, make_train_step
from darl_jax.training.step_metrics import NotFiniteError, StepMetrics

_USAGE = "python -m darl_jax.train --config=configs/digits.py --workdir=runs/digits"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; --config.KEY=VALUE overrides any of its keys."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder or bucket for checkpoints, metrics and pictures."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address of process 0 in a run of several processes, as host:port."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Rank of this process, from 0 on.")


def train(config: TrainConfig, workdir: epath.Path, stop: StopRequest) -> int:
    """One run, which writes below `workdir`; returns its exit code."""
    with contextlib.ExitStack() as cleanup, cluster.failing_together(), exit_codes(stop):
        # Mesh.
        mesh = make_mesh(config.mesh)
        check_batch(config.batch_size, config.accumulation_steps, mesh)
        config.method.check_mesh(mesh)
        cleanup.enter_context(jax.set_mesh(mesh))
        device, is_writer = jax.devices()[0], jax.process_index() == 0
        logging.info("Mesh %s of %s", dict(mesh.shape), device.device_kind)
        logging.info("Kernels: %s", dict(config.method.kernels(device)) or "XLA's")

        # Data. The order of the records follows from their number and fingerprint.
        logging.info("Opening the data")
        splits = config.data.open()
        config = config.resolved(splits.train)
        steps_per_epoch = len(splits.train) / config.batch_size
        total_steps = config.steps(len(splits.train))
        log_length(config, len(splits.train), total_steps)
        records = f"{len(splits.train)}, {splits.train.fingerprint()}"
        saved_config = config_lib.to_dict(config)
        alike = without_own_keys(saved_config) | {"train_records": records}
        cluster.check_alike(alike, "keys of the config, or records,")

        # Method and optimizer.
        method = config.method
        graphdef = graph_definition(method.init)
        length = config.batch_size, steps_per_epoch, total_steps
        learning_rate = learning_rate_schedule(config.optimizer, *length)
        optimizer = build_optimizer(
            config.optimizer,
            learning_rate,
            method,
            schedule=lambda changed: learning_rate_schedule(changed, *length),
        )
        init_key, step_key, evaluation_key = jax.random.split(jax.random.key(config.seed), 3)

        # State: restored where there is a checkpoint, new where there is none.
        kept = config.checkpoint
        checkpointer = Checkpointer(workdir, kept.keep_last, kept.keep_every, kept.timeout_seconds)
        cleanup.enter_context(checkpointer)
        check = functools.partial(check_same_run, saved_config, records, total_steps, workdir)
        state, start_step = begin(config, checkpointer, check, optimizer, init_key, mesh)

        # Evaluators, whose data is checked here.
        history = history_until(workdir, start_step) if is_writer else []
        context = Context(
            method=method,
            graphdef=graphdef,
            data=config.data,
            splits=splits,
            batch_size=config.batch_size // config.accumulation_steps,
            mesh=mesh,
            key=evaluation_key,
            initial_params=lambda: create_params(method.init, init_key, mesh),
        )
        evaluation = Evaluation(config.evaluators, context)
        pipeline.check_shared_memory((splits.train, config.data), *evaluation.read)
        # A run that was killed in an evaluation makes up for it.
        missing = evaluation.missing(history, start_step, last=start_step == total_steps)
        missing = bool(cluster.agree_on(int(missing and start_step > 0)))
        if start_step == total_steps and not missing:
            logging.info("All %d steps are done already; %s has them", total_steps, workdir)
            return 0

        # Metrics.
        clock = Clock(history)
        writer = MetricWriter(workdir, purge_step=start_step + 1, active=is_writer)
        cleanup.callback(writer.close)
        run_log = RunLog(
            writer=writer,
            clock=clock,
            total_steps=total_steps,
            batch_size=config.batch_size,
            steps_per_epoch=steps_per_epoch,
            flops_per_example=method.flops(),
            peak_flops=peak_flops(device),
            learning_rate=learning_rate,
        )
        cleanup.callback(run_log.close)

        # Batches; data workers start while the step is compiled. `start_step` batches have been
        # consumed, so the position in the data needs no state of its own.
        batches = pipeline.train_batches(
            splits.train,
            config.data,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        cleanup.callback(batches.close)

        def next_batch() -> Any:
            with clock("input"):
                rows = next(batches)
            return device_batch(rows, method.inputs, mesh, stop=stop.signal is not None)

        # The step.
        logging.info("Compiling the train step")
        with clock("compile"):
            train_step = compiled_step(config, graphdef, optimizer, state, step_key, mesh)
        step_metrics = StepMetrics(config.max_dropped_in_a_row)
        first_traced = config.profile.first_step if is_writer else 0
        profile = ProfileWindow(
            workdir, first_traced, config.profile.num_steps, lambda: jax.block_until_ready(state)
        )
        cleanup.callback(profile.close)

        def save(step: int) -> None:
            with clock("checkpoint"):
                checkpointer.save(step, state, saved_config, records)

        def evaluate(step: int) -> None:
            def leave() -> str:
                # A process alone saves the steps since the last checkpoint; several cannot agree.
                if jax.process_count() == 1 and checkpointer.latest_step() != step:
                    save(step)
                return where_saved(checkpointer, total_steps, workdir)

            writer.flush()
            # A signal waits for the save that is under way, not for the evaluators.
            guard = jax.transfer_guard("allow")
            with clock("evaluation"), guard, stop.leaving_after(leave):
                last = step == total_steps
                evaluation.run(state.evaluated_params, step, writer, last=last)
            run_log.note(step)

        # The loop.
        cleanup.enter_context(jax.transfer_guard("disallow"))
        stop.begin_training()
        run_log.begin(start_step)
        if missing:
            evaluate(start_step)
        step, stops = start_step, False
        batch = next_batch() if start_step < total_steps else None
        for step in range(start_step + 1, total_steps + 1):
            profile.before_step(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, batch, step_key)
            last = step == total_steps
            # On the devices before the step is awaited.
            batch = None if last else next_batch()
            with clock("device"):
                step_metrics.add(step, metrics)
            stops = step_metrics.stop_requested and not last
            evaluates = evaluation.due(step, last=last) and not stops
            saves = last or stops or step % config.checkpoint.every_steps == 0
            logs = last or stops or step % config.log_every_steps == 0
            if saves or logs or evaluates:
                # Before anything is saved or shown all steps are known to be finite.
                with clock("device"):
                    step_metrics.wait()
            run_log.show(step, step_metrics.loss)
            if logs:
                run_log.write(step, step_metrics.summary())
            if saves:
                save(step)
                run_log.note(step)
            if evaluates:
                evaluate(step)
            if stops:
                break
        with clock("checkpoint"):
            saved = where_saved(checkpointer, total_steps, workdir)
        run_log.note(step, finished=not stops)
        run_log.close()
        if not stops:
            logging.info("Finished %d steps; everything is in %s", total_steps, workdir)
        elif is_writer:
            print(f"{stop.signal or 'another process got a signal'}: {saved}", file=sys.stderr)
        return cli.EXIT_INTERRUPTED if stops else 0


def log_length(config: TrainConfig, records: int, total_steps: int) -> None:
    """Logs the length of a run, and which key decides it."""
    key = "total_epochs" if config.total_steps is None else "total_steps"
    logging.info(
        "%d training records, %.1f steps an epoch, %d steps = %.4g epochs in all (config.%s)",
        *(records, records / config.batch_size, total_steps),
        *(total_steps * config.batch_size / records, key),
    )


def begin(
    config: TrainConfig,
    checkpointer: Checkpointer,
    check: Check,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    mesh: Mesh,
) -> tuple[TrainState, int]:
    """State to begin with, and its step: that of the newest whole checkpoint, or new parameters."""
    method, averages = config.method, config.ema_decay > 0
    abstract = abstract_state(method.init, optimizer, mesh, ema=averages)
    restored = checkpointer.restore_latest(abstract, check)
    if restored is not None:
        state, step = restored
        logging.info("Goes on from step %d", step)
    else:
        initial = load_initial(config) if config.init.checkpoint else None
        state, step = create_state(method.init, optimizer, key, mesh, ema=averages), 0
        if initial is not None:
            state = initialize(state, initial, drop=config.init.drop)
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    logging.info("Parameters:\n%s", overview)
    return state, step


def compiled_step(
    config: TrainConfig,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    key: PRNGKeyArray,
    mesh: Mesh,
) -> jax.stages.Compiled:
    """The train step, for the shapes and layouts of the state and of the config's batches."""
    step = make_train_step(
        graphdef,
        config.method,
        optimizer,
        accumulation_steps=config.accumulation_steps,
        ema_decay=config.ema_decay,
    )
    batch = abstract_batch(config.method.inputs, config.batch_size, mesh)
    compiled = lower_step(step, state, batch, key).compile()
    compilation.log_memory(compiled)
    return compiled


def where_saved(checkpointer: Checkpointer, total_steps: int, workdir: epath.Path) -> str:
    """Waits for the save that is under way; returns a line for whoever stopped the run."""
    checkpointer.wait()
    step = checkpointer.latest_step()
    return (
        f"step {step} of {total_steps} is saved in {workdir}; the same command goes on from there"
    )


def main() -> None:
    """Trains, and exits with one of README's codes."""
    with (
        StopRequest(cluster.leave_together) as stop,
        contextlib.ExitStack() as run,
        exit_codes(stop),
    ):
        cluster.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if _CONFIG.value is None or not _WORKDIR.value:
            raise ValueError(f"--config and --workdir are needed; usage: {_USAGE}")
        workdir = writable_path(_WORKDIR.value)
        run.enter_context(made(workdir))
        cluster.share_failures(workdir)
        if jax.process_index() == 0:
            run.enter_context(lock.held(workdir))
        elif logging.get_verbosity() == logging.INFO:
            logging.set_verbosity(logging.WARNING)  # Process 0 speaks for all.
        config = config_lib.load(_CONFIG.value)
        compilation.keep_in(workdir)
        sys.exit(train(config, workdir, stop))


@contextlib.contextmanager
def made(workdir: epath.Path) -> Iterator[None]:
    """Makes a folder; a new one is removed again where a run was refused before it wrote anything.

    A cache of compiled programs, and a folder for checkpoints without any, count as nothing.

    Raises:
      OSError: it cannot be made.
    """
    is_local = "://" not in str(workdir)  # buckets have no empty folders
    new = [path for path in (workdir, *workdir.parents) if not path.exists()] if is_local else []
    try:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"--workdir={workdir} cannot be used: {error.strerror or error}"
            raise type(error)(reason) from error
        yield
    finally:
        with contextlib.suppress(OSError):
            inside = {path.name for path in workdir.iterdir()} if new else set()
            written = inside - {FOLDER, compilation.FOLDER} or any((workdir / FOLDER).glob("*"))
            if new and not written:
                shutil.rmtree(workdir)
            for folder in new[1:]:
                os.rmdir(folder)  # raises where it is not empty


@contextlib.contextmanager
def exit_codes(stop: StopRequest) -> Iterator[None]:
    """Turns errors into one line and an exit code, which is another once training has begun."""
    try:
        with cli.advice_on_devices():
            yield
    except SaveTimeoutError as error:  # A file system hangs, whose threads would never let it end.
        cluster.leave_together(cli.EXIT_ERROR, f"error: {error}")
    except NotFiniteError as error:
        cli.end(cli.EXIT_NOT_FINITE, error)
    except cli.USER_ERRORS as error:
        bad_input = isinstance(error, cli.BAD_INPUT) and not stop.training
        cli.end(cli.EXIT_BAD_INPUT if bad_input else cli.EXIT_ERROR, error)


if __name__ == "__main__":
    cli.run(main, _USAGE)
