"""Checkpoints by Orbax: asynchronous, atomic, and readable without the code that wrote them.

A run's checkpoints lie in `<workdir>/checkpoints/<step>/`, each with three items: `state` (every
array of the train state under a plain name, such as `params/backbone/blocks/mlp/up/kernel` or
`opt_state/adam/mu/backbone/...`), `config` and `metadata` (JSON). Names come from the attributes,
keys and positions on the way to an array, so that optimiser states, which are named tuples, need
not exist in the code that reads them.
"""

import contextlib
import importlib.metadata
import json
import logging as python_logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as managers

# Raised whenever a checkpoint written before could no longer be read: other names, other items.
FORMAT_VERSION = 1

_FOLDER = "checkpoints"
# TensorStore's codes for what passes or can be granted: the checkpoint itself may be whole.
_NO_DAMAGE = ("ABORTED", "CANCELLED", "DEADLINE", "PERMISSION", "RESOURCE", "UNAUTH", "UNAVAIL")
_LISTED = 10  # paths, files or steps that an error message names before it only counts


class Checkpointer:
    """Saves train states while training goes on, and restores them onto any mesh.

    Every process of a run makes one and calls the same methods in the same order.

    Args:
        workdir: local or bucket path; checkpoints go to `<workdir>/checkpoints`.
        keep_last: how many of the newest checkpoints stay.
        keep_every: checkpoints whose step is a multiple of it stay for ever; 0 for none.

    Raises:
        ValueError: `keep_last` below 1, `keep_every` below 0, or a file where the folder goes.
        OSError: the folder cannot be made.
    """

    def __init__(self, workdir: os.PathLike | str, *, keep_last: int, keep_every: int) -> None:
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last must be at least 1, not {keep_last}")
        if keep_every < 0:
            raise ValueError(f"checkpoint.keep_every must be 0 (off) or more, not {keep_every}")
        _quieten_orbax()
        self._folder = absolute_path(workdir) / _FOLDER
        self._saving: int | None = None
        keep: list[managers.PreservationPolicy] = [managers.LatestN(keep_last)]
        if keep_every:
            keep.append(managers.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(keep),
            # What a killed run left half-written.
            cleanup_tmp_directories=True,
            # When the folder is made in the background and that fails, Orbax's writer threads
            # wait for it until they time out, ten minutes later.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
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
            config: what `read_config` returns; anything that JSON can hold.

        Raises:
            ValueError: a later checkpoint exists, which a resumed run would prefer to this one;
                or `config` has a value that JSON cannot hold.
            OSError: this save could not start, or the one before failed in the background.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_to_nested_dict(state)),
            config=ocp.args.JsonSave(_as_json(config)),
            metadata=ocp.args.JsonSave(
                {"format_version": FORMAT_VERSION, "step": step, "libraries": _library_versions()}
            ),
        )
        latest = self.latest_step()
        if latest == step:
            return
        if latest is not None and latest > step:
            raise ValueError(
                f"cannot save step {step}: {self._folder} has a later checkpoint, of step {latest}"
            )
        self._saving = step
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._save_error(error) from error

    def restore(self, abstract_state: PyTree, step: int | None = None) -> PyTree:
        """The state of a step (None: the newest), laid out as `abstract_state` says.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, or of arrays. The mesh
                may differ from the one that the checkpoint was written on; the bits will not.
            step: one of the steps that there are.

        Raises:
            FileNotFoundError: there is no checkpoint, or none of this step.
            ValueError: a damaged checkpoint; another format version; a leaf without a sharding; or
                names, shapes or types differ: the message lists them and nothing was allocated.
        """
        self.wait()
        path = _step_path(self._folder, step)
        target = jax.tree.map(_abstract_leaf, abstract_state)
        _check_arrays(path, _named_leaves(target))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_to_nested_dict(target)))
        with _damage_named(path):
            restored = self._manager.restore(int(path.name), args=args)
        by_name = _named_leaves(restored["state"])
        leaves = [by_name[name] for name in _named_leaves(target)]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)

    def read_config(self, step: int | None = None) -> dict[str, Any]:
        """The config that the checkpoint of a step (None: the newest) was saved with, from JSON.

        Raises:
            FileNotFoundError: there is no checkpoint, or none of this step.
            ValueError: another format version, or a damaged checkpoint.
        """
        self.wait()
        path = _step_path(self._folder, step)
        return _read_json(path, "config")

    def wait(self) -> None:
        """Blocks until nothing is being written.

        Raises:
            OSError: the last save failed; the checkpoints before it are untouched.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._save_error(error) from error

    def close(self) -> None:
        """Waits for the last save and ends the threads.

        Raises:
            OSError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def _save_error(self, error: Exception) -> OSError:
        # Orbax has already dropped the checkpoints that this one was to replace from its list.
        self._manager.reload()
        return OSError(
            f"could not write the checkpoint of step {self._saving} to {self._folder}, earlier ones"
            f" are untouched: {error}"
        )


def absolute_path(path: os.PathLike | str) -> epath.Path:
    """A folder's whole path, or a bucket's as it is; Orbax refuses relative ones when it writes."""
    if "://" in os.fspath(path):
        return epath.Path(path)
    return epath.Path(path).expanduser().resolve()


def restore_params(
    path: os.PathLike | str, step: int | None = None
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Parameters, config and step of a checkpoint, read without the code that wrote it.

    Only the parameters are read, not the optimiser's state, which is twice their size.

    Args:
        path: a run's workdir or its folder of checkpoints; local or a bucket.
        step: one of the steps that there are; None for the newest.

    Returns:
        The parameters as nested dicts of numpy arrays, the config as JSON kept it, and the step.

    Raises:
        FileNotFoundError: there is no checkpoint, or none of this step.
        ValueError: another format version, or a damaged checkpoint.
    """
    _quieten_orbax()
    folder = absolute_path(path)
    if (folder / _FOLDER).is_dir():
        folder = folder / _FOLDER
    step_path = _step_path(folder, step)
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    with _damage_named(step_path), contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        wanted = {"params": handler.metadata(step_path / "state").tree["params"]}
        restored = handler.restore(
            step_path / "state",
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=jax.tree.map(lambda _: as_numpy, wanted),
                partial_restore=True,
            ),
        )
    return restored["params"], _read_json(step_path, "config"), int(step_path.name)


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], may_change: Sequence[str]
) -> list[str]:
    """What keeps a run with config `current` from going on from a checkpoint with config `saved`.

    Compared as JSON keeps them, so lists equal tuples.

    Args:
        saved: nested dicts, as `Checkpointer.read_config` returns them.
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


def _key_name(key: Any) -> str:
    """Plain name of one step on the way to a leaf: an attribute, a dict's key or a position."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"a state's containers must name their children; {key!r} does not")


def _named_leaves(tree: PyTree) -> dict[tuple[str, ...], Any]:
    """Leaves by the names on the way to them, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(_key_name(key) for key in path): leaf for path, leaf in paths}


def _to_nested_dict(tree: PyTree) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, leaf in _named_leaves(tree).items():
        level = nested
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = leaf
    return nested


def _abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    # Orbax would take the sharding that was saved, whose devices may not be here.
    if getattr(leaf, "sharding", None) is None:
        raise ValueError(f"the abstract state says no sharding for a leaf {leaf}")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_arrays(path: epath.Path, expected: Mapping[tuple[str, ...], Any]) -> None:
    """Raises a ValueError that lists the arrays which the checkpoint has otherwise, or not."""
    with _damage_named(path), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        saved = _named_leaves(handler.metadata(path / "state").tree)
    differences = []
    for name in sorted(saved.keys() | expected.keys()):
        there = _describe(saved[name]) if name in saved else "absent"
        here = _describe(expected[name]) if name in expected else "absent"
        if there != here:
            differences.append(f"{'/'.join(name)}: {there} in the checkpoint, {here} in this run")
    if differences:
        raise ValueError(
            f"the checkpoint {path} does not fit this run's model and optimiser; arrays that "
            f"differ: {len(differences)}\n  " + "\n  ".join(_shortened(differences))
        )


def _describe(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name} {tuple(leaf.shape)}"


def _shortened(names: Sequence[str]) -> list[str]:
    hidden = len(names) - _LISTED
    return [*names[:_LISTED], f"and {hidden} more"] if hidden > 0 else list(names)


def _step_path(folder: epath.Path, step: int | None) -> epath.Path:
    """Folder of a complete checkpoint of this format: the newest, or that of `step`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoints: there is no folder {folder}")
    steps = sorted(ocp.utils.checkpoint_steps(folder))
    if not steps:
        found = ", ".join(_shortened(sorted(entry.name for entry in folder.iterdir())))
        raise FileNotFoundError(f"no checkpoint in {folder}, which holds: {found or 'nothing'}")
    if step is not None and step not in steps:
        raise FileNotFoundError(
            f"no checkpoint of step {step} in {folder}; there are: {', '.join(map(str, steps))}"
        )
    path = folder / str(steps[-1] if step is None else step)
    version = _read_json(path, "metadata").get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the checkpoint {path} has format version {version}; this version of darl_jax reads "
            f"version {FORMAT_VERSION}"
        )
    return path


def _read_json(path: epath.Path, item: str) -> dict[str, Any]:
    if not (path / item).is_dir():
        raise ValueError(f"{path} is not a checkpoint of darl_jax: it has no {item!r}")
    with _damage_named(path), contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
        return handler.restore(path / item)


@contextlib.contextmanager
def _damage_named(path: epath.Path) -> Iterator[None]:
    """What reading a damaged checkpoint raises becomes one error that says which it is."""
    try:
        yield
    except Exception as error:
        # Orbax raises a bare Exception from what TensorStore says of an array.
        reason = error.__cause__ if type(error) is Exception and error.__cause__ else error
        text = (str(reason) or type(reason).__name__).splitlines()[0]
        damages = isinstance(reason, (ValueError, KeyError, FileNotFoundError))
        if not damages or text.startswith(_NO_DAMAGE):
            raise
        remedy = "remove that folder to go on from the one before"
        raise ValueError(f"the checkpoint {path} is damaged: {text}; {remedy}") from error


def _library_versions() -> dict[str, str]:
    names = ("jax", "flax", "optax", "orbax-checkpoint")
    return {name: importlib.metadata.version(name) for name in names}


def _is_worth_showing(record: python_logging.LogRecord) -> bool:
    """False for Orbax's notes, dozens a save, and for tracebacks of what it also raises."""
    if os.path.join("orbax", "checkpoint") not in record.pathname:
        return True
    return record.levelno >= python_logging.WARNING and not record.exc_info


def _quieten_orbax() -> None:
    # A filter, not a level: Orbax logs through absl's one logger, which is also ours.
    logging.get_absl_logger().addFilter(_is_worth_showing)  # a filter is added only once
