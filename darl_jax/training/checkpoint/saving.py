"""Checkpoints by Orbax: asynchronous, atomic, and verified when they are read.

A save continues in the background. One that fails or hangs is an error of the next call and leaves
earlier checkpoints as they were. A restore takes the newest checkpoint that is whole.
"""

import concurrent.futures
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as managers

from darl_jax.runtime import cluster
from darl_jax.training.checkpoint import reading
from darl_jax.training.checkpoint.reading import DamagedCheckpointError

_DAMAGED_FOLDER = "damaged_checkpoints"

# Takes config, training records and step of a checkpoint; raises where a run cannot continue it.
Check = Callable[[dict[str, Any], str, int], None]


class SaveTimeoutError(TimeoutError):
    """A save hangs; its threads end by `os._exit` alone."""


class Checkpointer:
    """Saves train states while training goes on, and restores them onto any mesh.

    Every process of a run creates one and calls the same methods in the same order. After a save
    that failed, some of its writes may still be under way: end the run, and start it again.

    Args:
        workdir: local or bucket path; checkpoints go to `<workdir>/checkpoints`.
        keep_last: number of newest checkpoints that stay.
        keep_every: checkpoints whose step is a multiple of it stay for ever; 0 for none.
        timeout_seconds: limit for writing in the background.
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        keep_last: int,
        keep_every: int,
        timeout_seconds: int = 1800,
    ) -> None:
        reading.quieten_orbax()
        self._workdir = reading.writable_path(workdir)
        self._folder = self._workdir / reading.FOLDER
        self._timeout = timeout_seconds
        self._saving: tuple[int, set[str]] | None = None  # step, and names of its arrays
        self._deadline = 0.0  # of this save, in time.monotonic()
        self._waiter = concurrent.futures.ThreadPoolExecutor(1)
        self._hangs = False
        self._closed = False
        keep: list[managers.PreservationPolicy] = [managers.LatestN(keep_last)]
        if keep_every:
            keep.append(managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,  # of a save that a kill cut short
            async_options=ocp.AsyncOptions(
                timeout_secs=timeout_seconds,
                barrier_sync_fn=_barrier,
                # Before the step gets its final name and earlier steps are removed.
                post_finalization_callback=self._check_written,
                # In the background, a failure would be noticed only after the time limit.
                create_directories_asynchronously=False,
            ),
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
            "metadata": ocp.JsonCheckpointHandler(),
        }
        try:
            if self._folder.exists() and not self._folder.is_dir():
                raise FileExistsError(f"{self._folder} is a file")
            self._manager = ocp.CheckpointManager(
                self._folder, item_handlers=handlers, options=options
            )
        except OSError as error:
            raise type(error)(f"cannot keep checkpoints in {self._folder}: {error}") from error

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; waits for a save. Raises as `wait`."""
        self.wait()
        return self._manager.latest_step()

    def save(
        self, step: int, state: PyTree, config: Mapping[str, Any], train_records: str = ""
    ) -> None:
        """Starts a save, and returns once the arrays of `state` may be donated or overwritten.

        Waits first for the previous save. Saving the newest step again does nothing.

        Raises:
            ValueError: a later checkpoint exists, which a resumed run would prefer to this one.
            OSError: as `wait`, for this save or the previous one.
        """
        config = json.loads(json.dumps(dict(config)))
        latest = self.latest_step()
        if latest == step:
            return
        if latest is not None and latest > step:
            raise ValueError(
                f"cannot save step {step}: {self._folder} has a later checkpoint, of step {latest}"
            )
        arrays = reading.to_nested_dict(state)
        metadata = reading.make_metadata(step, arrays, config, train_records)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            config=ocp.args.JsonSave(config),
            metadata=ocp.args.JsonSave(metadata),
        )
        self._saving = (step, set(metadata["arrays"]))
        self._deadline = time.monotonic() + self._timeout
        with self._naming_failures():
            self._manager.save(step, args=items, force=True)

    def restore_latest(
        self, abstract_state: PyTree, check: Check | None = None
    ) -> tuple[PyTree, int] | None:
        """Reads state and step of the newest checkpoint that is whole; None where there is none.

        Newer ones that cannot be read, for whatever reason, are moved to
        `<workdir>/damaged_checkpoints` with a warning each, so that the run can save their steps
        again.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, or of arrays. The mesh
                may differ from the one that the checkpoint was written on; the bits will not.
            check: called before the arrays are read. Its exceptions end the search.

        Raises:
            ValueError: no checkpoint can be read (none is moved); another format version; or names,
                shapes or types differ: the message lists them, and nothing was allocated.
        """
        self.wait()
        damaged: list[DamagedCheckpointError] = []
        step = self._newest_before(None)
        while step is not None:
            try:
                state = self._read(self._folder / str(step), abstract_state, check)
            except DamagedCheckpointError as error:
                # A new error: the traceback of this one holds the arrays.
                damaged.append(DamagedCheckpointError(error.path, error.reason))
            else:
                self._move_aside(damaged, step)
                return state, step
            gc.collect()  # arrays on the devices, held by frames of the error
            step = self._newest_before(step)
        if damaged:
            raise ValueError(
                f"no checkpoint in {self._folder} can be used, and all were left there: "
                + "; ".join(f"step {error.path.name}: {error.reason}" for error in damaged)
                + ". Put one back from a copy, or give another --workdir to start anew"
            )
        return None

    def wait(self) -> None:
        """Blocks until nothing is being written. May be called in a signal handler.

        Raises:
            SaveTimeoutError: writing takes longer than `timeout_seconds`. Threads of this process
                may hang in the file system: end it by `os._exit`.
            OSError: the last save failed; earlier checkpoints are untouched.
        """
        if self._saving is not None:
            with self._naming_failures():
                # Orbax limits the time for arrays, and not that for its own small files.
                finished = self._waiter.submit(self._manager.wait_until_finished)
                finished.result(max(5.0, self._deadline - time.monotonic()))
            self._saving = None

    def close(self) -> None:
        """Waits for the last save and ends the threads; those of a save that hangs are left."""
        try:
            self.wait()
        finally:
            if not self._hangs and not self._closed:
                # By the same thread, to which Orbax reports a failure once.
                self._waiter.submit(self._manager.close).result()
                self._closed = True
            self._waiter.shutdown(wait=False)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # An earlier error takes precedence.
                raise

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Turns any exception of a save into one that names the checkpoint."""
        step = self._saving[0] if self._saving else None
        checkpoint = f"the checkpoint of step {step} to {self._folder}"
        try:
            yield
        except TimeoutError as error:
            self._saving, self._hangs = None, True
            raise SaveTimeoutError(
                f"writing {checkpoint} takes longer than checkpoint.timeout_seconds="
                f"{self._timeout}; earlier ones are untouched"
            ) from error
        except Exception as error:
            self._saving = None
            # Orbax has already removed the checkpoints that this one was to replace from its list.
            with contextlib.suppress(OSError):
                self._manager.reload()
            raise OSError(
                f"could not write {checkpoint}, earlier ones are untouched: "
                f"{reading.first_line(error)}"
            ) from error

    def _check_written(self) -> None:
        """Finds each array in what was written, without reading its values."""
        if self._saving is None:
            return
        step, names = self._saving
        # On local disks the folder still has a temporary name, such as '7.orbax-checkpoint-tmp'.
        for folder in self._folder.iterdir():
            if folder.name.split(".")[0] == str(step):
                missing = sorted(names - reading.names_in(folder))
                if missing:
                    raise ValueError(f"missing arrays: {', '.join(reading.shortened(missing))}")

    def _read(self, path: epath.Path, abstract_state: PyTree, check: Check | None) -> PyTree:
        """Reads the state in a folder; all processes return, or all raise."""
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            abstract_state,
        )
        restored: dict[str, Any] = {}
        metadata: dict[str, Any] = {}

        def read_own_part() -> None:
            metadata.update(reading.read_metadata(path))
            config = reading.read_config(path, metadata)
            if check is not None:
                check(config, metadata["train_records"], int(path.name))
            reading.check_fits(path, metadata, target)
            restored.update(reading.read_arrays(path, reading.to_nested_dict(target)))

        _together(path, read_own_part)
        reading.check_whole(path, metadata, restored)
        by_name = reading.arrays_by_name(restored)
        leaves = [by_name[name] for name in reading.arrays_by_name(target)]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def _newest_before(self, step: int | None) -> int | None:
        """Newest step below `step`, as process 0 sees it."""
        steps = ocp.utils.checkpoint_steps(self._folder)
        newest = max((s for s in steps if step is None or s < step), default=-1)
        newest = int(cluster.gather(np.array(newest))[0])
        return newest if newest >= 0 else None

    def _move_aside(self, damaged: list[DamagedCheckpointError], step: int) -> None:
        def move() -> None:
            if jax.process_index() != 0:
                return
            aside = self._workdir / _DAMAGED_FOLDER
            aside.mkdir(parents=True, exist_ok=True)
            for error in damaged:
                moved = aside / error.path.name
                if moved.exists():
                    moved = aside / f"{error.path.name}-{time.time_ns()}"
                error.path.rename(moved)
                logging.warning(
                    "The checkpoint of step %s cannot be used (%s): moved to %s; step %d is used",
                    *(error.path.name, error.reason, moved, step),
                )

        if damaged:
            _together(self._folder, move)
            self._manager.reload()


def _together(path: epath.Path, action: Callable[[], None]) -> None:
    """Runs `action` in every process; all continue when it is done, or all raise.

    A process may see what others do not: its part of a checkpoint is damaged, or its disk is full.
    Where `action` failed in others alone, DamagedCheckpointError or OSError says so.
    """
    problem: Exception | None = None
    try:
        action()
    except Exception as error:
        problem = error
    kind = 0 if problem is None else 1 if isinstance(problem, DamagedCheckpointError) else 2
    kinds = cluster.gather(np.array(kind))
    worst, process = int(kinds.max()), int(kinds.argmax())
    if worst == 1 and isinstance(problem, DamagedCheckpointError):
        if jax.process_index() != 0:  # Process 0 logs its own.
            logging.warning("Process %d: %s", jax.process_index(), problem)
        raise problem
    if worst == 1:
        raise DamagedCheckpointError(path, f"process {process} cannot read its part")
    if problem is not None:
        raise problem
    if worst:
        raise OSError(f"process {process} cannot use {path}")


def _barrier(*, key: str, timeout_ms: int) -> None:
    """Barrier for Orbax's background threads, at which a save that failed does not wait.

    Orbax also calls it in a `finally`. The other processes never reach the same barrier then, and
    the failure would be seen only after the time limit.
    """
    failure = sys.exc_info()[1]
    if failure is not None:
        raise failure
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)
