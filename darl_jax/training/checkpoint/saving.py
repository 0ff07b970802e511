"""Checkpoints by Orbax: asynchronous, atomic, and verified when they are read.

`reading.py` says what a checkpoint holds. A save goes on in the background; one that
fails or hangs is an error of the next call and leaves the checkpoints before it as they were. A
restore takes the newest checkpoint that is whole.
"""

import concurrent.futures
import contextlib
import dataclasses
import gc
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as managers

from darl_jax.training.checkpoint import reading
from darl_jax.training.checkpoint.background import Worker
from darl_jax.training.checkpoint.processes import barrier, from_all, together
from darl_jax.training.checkpoint.reading import DamagedCheckpointError, absolute_path

_DAMAGED_FOLDER = "damaged_checkpoints"


class SaveTimeoutError(TimeoutError):
    """A save hangs, and with it threads that only `os._exit` ends."""


class Checkpointer:
    """Saves train states while training goes on, and restores them onto any mesh.

    Every process of a run makes one and calls the same methods in the same order. After a save that
    failed, writes of it may still be going on: end the run, and start it again.

    Args:
        workdir: local or bucket path; checkpoints go to `<workdir>/checkpoints`.
        keep_last: how many of the newest checkpoints stay.
        keep_every: checkpoints whose step is a multiple of it stay for ever; 0 for none.
        timeout_seconds: a save that takes longer, from its start to its last file, is an error.

    Raises:
        ValueError: `keep_last` below 1, `keep_every` below 0, `timeout_seconds` not above 0, or a
            file where the folder goes.
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        *,
        keep_last: int,
        keep_every: int,
        timeout_seconds: int | float = 1800,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last must be at least 1, not {keep_last}")
        if keep_every < 0:
            raise ValueError(f"checkpoint.keep_every must be 0 (off) or more, not {keep_every}")
        if timeout_seconds <= 0:
            raise ValueError(f"checkpoint.timeout_seconds must be above 0, not {timeout_seconds}")
        reading.quieten_orbax()
        self._workdir = absolute_path(workdir)
        self._folder = self._workdir / reading.FOLDER
        self._timeout = timeout_seconds
        self._saving: _Save | None = None
        keep: list[managers.PreservationPolicy] = [managers.LatestN(keep_last)]
        if keep_every:
            keep.append(managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(keep),
            # What a killed run left half-written.
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                # For processes that wait for others; what hangs is found in `wait`.
                timeout_secs=math.ceil(timeout_seconds),
                barrier_sync_fn=barrier,
                # When the folder is made in the background and that fails, Orbax's writer threads
                # wait for it until they time out.
                create_directories_asynchronously=False,
            ),
        )
        try:
            if self._folder.exists() and not self._folder.is_dir():
                raise ValueError(f"{self._folder} is a file; move it, for checkpoints go there")
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "config": ocp.JsonCheckpointHandler(),
                    "metadata": ocp.JsonCheckpointHandler(),
                },
                options=options,
            )
        except OSError as error:
            raise OSError(f"cannot keep checkpoints in {self._folder}: {error}") from error
        self._worker = Worker()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; waits for one that is being written.

        Raises:
            OSError: as `wait`.
        """
        self.wait()
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, config: Mapping[str, Any]) -> None:
        """Starts to save, and returns once the arrays of `state` may be donated or overwritten.

        Waits first for the save before it. Saving the newest step again does nothing.

        Args:
            step: how many steps lead to this state.
            state: any tree of arrays.
            config: of the run; anything that JSON can hold.

        Raises:
            ValueError: a later checkpoint exists, which a resumed run would prefer to this one;
                or `config` has a value that JSON cannot hold.
            SaveTimeoutError: as `wait`.
            OSError: this save could not start, or the one before failed in the background.
        """
        config = _as_json(config)
        latest = self.latest_step()
        if latest == step:
            return
        if latest is not None and latest > step:
            raise ValueError(
                f"cannot save step {step}: {self._folder} has a later checkpoint, of step {latest}"
            )
        arrays = reading.to_nested_dict(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            config=ocp.args.JsonSave(config),
            metadata=ocp.args.JsonSave(reading.make_metadata(step, arrays, config)),
        )
        self._saving = _Save(
            step,
            deadline=time.monotonic() + self._timeout,
            started=self._worker.submit(lambda: self._manager.save(step, args=items, force=True)),
            finished=self._worker.submit(self._manager.wait_until_finished),
        )
        self._await(self._saving, self._saving.started)

    def restore(self, abstract_state: PyTree, step: int | None = None) -> PyTree:
        """The state of a step (None: the newest), laid out as `abstract_state` says.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, or of arrays. The mesh
                may differ from the one that the checkpoint was written on; the bits will not.
            step: one of the steps that there are.

        Raises:
            FileNotFoundError: there is no checkpoint, or none of this step.
            DamagedCheckpointError: it is damaged, for any of the processes.
            ValueError: another format version; a leaf without a sharding; or names, shapes or
                types differ: the message lists them and nothing was allocated.
            OSError: as `wait`; or another process could not read it.
        """
        self.wait()
        path = reading.path_of_step(self._folder, step)
        return self._read(path, abstract_state, check=None)

    def restore_latest(
        self,
        abstract_state: PyTree,
        check: Callable[[dict[str, Any], int], None] | None = None,
    ) -> tuple[PyTree, int] | None:
        """State and step of the newest checkpoint that is whole, or None where there is none.

        Damaged ones that are newer are moved to `<workdir>/damaged_checkpoints`, with a warning
        that names each, so that the run can save those steps again.

        Args:
            abstract_state: as in `restore`.
            check: called with config and step of a checkpoint before its arrays are read. What it
                raises ends the search, and nothing is moved.

        Raises:
            ValueError: all checkpoints are damaged (none is moved); or as in `restore`.
            OSError: as in `restore`; or a damaged checkpoint could not be moved.
        """
        self.wait()
        damaged: list[DamagedCheckpointError] = []
        step = self._newest_before(None)
        while step is not None:
            try:
                state = self._read(self._folder / str(step), abstract_state, check)
            except DamagedCheckpointError as error:
                # A new one: the traceback of the other holds the arrays.
                damaged.append(DamagedCheckpointError(error.path, error.reason))
            else:
                self._move_aside(damaged, step)
                return state, step
            # Arrays of the damaged one, on the devices, that frames of its errors still hold.
            gc.collect()
            step = self._newest_before(step)
        if damaged:
            raise ValueError(
                f"every checkpoint in {self._folder} is damaged, and they were left there: "
                + "; ".join(f"step {error.path.name}: {error.reason}" for error in damaged)
                + ". Put one back from a copy, or give another --workdir to start anew"
            )
        return None

    def wait(self) -> None:
        """Blocks until nothing is being written.

        Raises:
            SaveTimeoutError: the save takes longer than `timeout_seconds`. Threads of this process
                may hang in the file system then: end it by `os._exit`.
            OSError: the last save failed; the checkpoints before it are untouched.
        """
        if self._saving is not None:
            self._await(self._saving, self._saving.finished)
            self._saving = None

    def close(self) -> None:
        """Waits for the last save and ends the threads; those of a save that hangs are left.

        Raises:
            OSError: as `wait`, unless that has been raised before.
        """
        if self._worker.stopped or (self._saving is not None and self._saving.hangs):
            return
        try:
            self.wait()
        finally:
            if self._saving is None:
                self._worker.submit(self._manager.close).result()
                self._worker.stop()

    def _await(self, saving: "_Save", part: concurrent.futures.Future) -> None:
        try:
            part.result(max(0.0, saving.deadline - time.monotonic()))
        except Exception as error:
            what = f"the checkpoint of step {saving.step} to {self._folder}"
            if not part.done():
                saving.hangs = True
                raise SaveTimeoutError(
                    f"writing {what} takes longer than checkpoint.timeout_seconds="
                    f"{self._timeout:g}; earlier ones are untouched"
                ) from None
            self._saving = None
            # Orbax has already dropped the checkpoints that this one was to replace from its list.
            with contextlib.suppress(OSError):  # a file system that is gone
                self._manager.reload()
            reason = reading.first_line(error)
            raise OSError(
                f"could not write {what}, earlier ones are untouched: {reason}"
            ) from error

    def _read(
        self,
        path: Any,
        abstract_state: PyTree,
        check: Callable[[dict[str, Any], int], None] | None,
    ) -> PyTree:
        """The state in a folder; all processes return, or all raise."""
        target = jax.tree.map(_abstract_leaf, abstract_state)
        restored: dict[str, Any] = {}
        metadata: dict[str, Any] = {}

        def read_own_part() -> None:
            metadata.update(reading.read_metadata(path))
            config = reading.read_config(path, metadata)
            if check is not None:
                check(config, int(path.name))
            reading.check_fits(path, metadata, target)
            restored.update(reading.read_arrays(path, reading.to_nested_dict(target)))

        together(path, read_own_part)
        reading.check_whole(path, metadata, restored)
        by_name = reading.named_leaves(restored)
        leaves = [by_name[name] for name in reading.named_leaves(target)]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def _newest_before(self, step: int | None) -> int | None:
        """The newest step there is, below `step`; what process 0 sees counts for all."""
        steps = ocp.utils.checkpoint_steps(self._folder)
        newest = max((s for s in steps if step is None or s < step), default=-1)
        newest = int(from_all(np.int32(newest))[0])
        return newest if newest >= 0 else None

    def _move_aside(self, damaged: Sequence[DamagedCheckpointError], step: int) -> None:
        if not damaged:
            return

        def move() -> None:
            if jax.process_index() != 0:
                return
            aside = self._workdir / _DAMAGED_FOLDER
            aside.mkdir(parents=True, exist_ok=True)
            for error in damaged:
                name = error.path.name
                taken = {entry.name for entry in aside.iterdir()}
                names = [name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))]
                moved = aside / next(name for name in names if name not in taken)
                error.path.rename(moved)
                logging.warning(
                    "The checkpoint of step %s is damaged (%s): moved to %s; step %d is used "
                    "instead",
                    name,
                    error.reason,
                    moved,
                    step,
                )

        together(self._folder, move)
        self._manager.reload()


@dataclasses.dataclass
class _Save:
    """What is known of a save that goes on in the worker thread."""

    step: int
    deadline: float  # in time.monotonic()
    started: concurrent.futures.Future  # done when the arrays have been copied
    finished: concurrent.futures.Future
    hangs: bool = False


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], may_change: Sequence[str]
) -> list[str]:
    """What keeps a run with config `current` from going on from a checkpoint with config `saved`.

    Compared as JSON keeps them, so lists equal tuples.

    Args:
        saved: nested dicts, as `restore_params` returns them and `check` gets them.
        current: nested dicts.
        may_change: dotted keys which may differ, each with all that is below it.

    Returns:
        A line for each other key that differs, such as
        "model.width: 384 in the checkpoint, 768 now"; empty when the run may go on.
    """
    old, new = _dotted(_as_json(saved)), _dotted(_as_json(current))
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if any(key == entry or key.startswith(f"{entry}.") for entry in may_change):
            continue
        if key in old and key in new and old[key] == new[key]:
            continue
        before = repr(old[key]) if key in old else "absent"
        now = repr(new[key]) if key in new else "absent"
        lines.append(f"{key}: {before} in the checkpoint, {now} now")
    return lines


def _dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the config cannot be kept as JSON: {error}") from error


def _abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    # Orbax would take the sharding that was saved, whose devices may not be here.
    if getattr(leaf, "sharding", None) is None:
        raise ValueError(f"the abstract state says no sharding for a leaf {leaf}")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
