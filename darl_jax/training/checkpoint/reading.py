"""What a checkpoint holds, and how it is read: whole, or with an error that says what is off.

`<workdir>/checkpoints/<step>/` has three items: `state` (every array of the train state under a
plain name, such as `params/backbone/blocks/mlp/up/kernel` or `opt_state/adam/mu/backbone/...`),
`config` and `metadata` (JSON). Names come from the attributes, keys and positions on the way to an
array, so that optimizer states, which are named tuples, need not exist in the code that reads them.

Array files have no checksums of their own, so `metadata` has one for each array, one for the
config and one for itself. Type and shape of the arrays stand there too: what differs from them in
the files is damage, what differs from them in the run is another model.
"""

import contextlib
import errno
import importlib.metadata
import logging as python_logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jaxtyping import PyTree

from darl_jax.training.checkpoint.checksums import checksums, json_checksum, seal_is_whole, sealed

# Raised whenever an older checkpoint could no longer be read as it was meant: other names, items or
# channels (3: RoPE by halves of a head).
FORMAT_VERSION = 3
FOLDER = "checkpoints"

# TensorStore's codes for what passes or can be granted: the checkpoint itself may be whole.
_NO_DAMAGE = ("ABORTED", "CANCELLED", "DEADLINE", "PERMISSION", "RESOURCE", "UNAUTH", "UNAVAIL")
# Of the system's errors, those that say that a file is not there.
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_LISTED = 10  # paths, files or steps that an error message names before it only counts
_ORBAX = os.path.join("orbax", "checkpoint")  # in the paths of its source files

Name = tuple[str, ...]


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was written.

    Attributes:
        path: its folder.
        reason: what is off, in one line.
    """

    def __init__(self, path: epath.Path, reason: str) -> None:
        super().__init__(
            f"the checkpoint {path} is damaged: {reason}; the ones before it may be whole"
        )
        self.path = path
        self.reason = reason


def absolute_path(path: os.PathLike | str) -> epath.Path:
    """A folder's whole path, or a bucket's as it is; Orbax refuses relative ones when it writes."""
    if "://" in os.fspath(path):
        return epath.Path(path)
    return epath.Path(path).expanduser().resolve()


def restore_params(
    path: os.PathLike | str, step: int | None = None, *, averaged: bool = True
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Parameters, config and step of a checkpoint, read without the code that wrote it.

    Only the parameters are read, not the optimizer's state, which is twice their size.

    Args:
        path: a run's workdir or its folder of checkpoints; local or a bucket.
        step: one of the steps that there are; None for the newest.
        averaged: take their exponential moving average where the run kept one.

    Returns:
        The parameters as nested dicts of numpy arrays, the config as JSON kept it, and the step.

    Raises:
        FileNotFoundError: there is no checkpoint, or none of this step.
        ValueError: another format version.
        DamagedCheckpointError: a damaged checkpoint.
    """
    step_path, metadata, config = _open_checkpoint(path, step)
    has_average = any(name.startswith("ema/") for name in metadata["arrays"])
    item = "ema" if averaged and has_average else "params"
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    with (
        damage_named(step_path, "state"),
        contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler,
    ):
        wanted = {item: handler.metadata(step_path / "state").tree[item]}
        restored = handler.restore(
            step_path / "state",
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=jax.tree.map(lambda _: as_numpy, wanted),
                partial_restore=True,
            ),
        )
    check_whole(step_path, metadata, restored, below=f"{item}/")
    return restored[item], config, int(step_path.name)


def restore_config(path: os.PathLike | str, step: int | None = None) -> dict[str, Any]:
    """The config of a checkpoint, as JSON kept it; arguments and errors are `restore_params`'s."""
    return _open_checkpoint(path, step)[2]


def _open_checkpoint(
    path: os.PathLike | str, step: int | None
) -> tuple[epath.Path, dict[str, Any], dict[str, Any]]:
    """The folder of a run's checkpoint, with its metadata and its config."""
    quieten_orbax()
    folder = absolute_path(path)
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
    step_path = path_of_step(folder, step)
    metadata = read_metadata(step_path)
    return step_path, metadata, read_config(step_path, metadata)


def path_of_step(folder: epath.Path, step: int | None) -> epath.Path:
    """Folder of a complete checkpoint: the newest, or that of `step`.

    Raises:
        FileNotFoundError: there is none.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoints: there is no folder {folder}")
    steps = sorted(ocp.utils.checkpoint_steps(folder))
    if not steps:
        found = ", ".join(shortened(sorted(entry.name for entry in folder.iterdir())))
        raise FileNotFoundError(f"no checkpoint in {folder}, which holds: {found or 'nothing'}")
    if step is not None and step not in steps:
        raise FileNotFoundError(
            f"no checkpoint of step {step} in {folder}; there are: {', '.join(map(str, steps))}"
        )
    return folder / str(steps[-1] if step is None else step)


def make_metadata(step: int, state: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What the item `metadata` holds; every process of a run has to call this.

    Args:
        step: how many steps lead to the state.
        state: its arrays as nested dicts.
        config: as JSON will keep it.

    Raises:
        ValueError: an array of a type that has no checksum.
    """
    arrays = arrays_by_name(state)
    sums = checksums(arrays)
    libraries = ("jax", "flax", "optax", "orbax-checkpoint")
    return sealed(
        {
            "format_version": FORMAT_VERSION,
            "step": step,
            "libraries": {name: importlib.metadata.version(name) for name in libraries},
            "arrays": {
                name: {
                    "dtype": np.dtype(array.dtype).name,
                    "shape": list(array.shape),
                    "checksum": sums[name],
                }
                for name, array in arrays.items()
            },
            "config_checksum": json_checksum(config),
        }
    )


def read_metadata(path: epath.Path) -> dict[str, Any]:
    """The item `metadata` of a checkpoint, verified.

    Raises:
        ValueError: another format version.
        DamagedCheckpointError: the item is damaged.
    """
    metadata = _read_json(path, "metadata")
    whole = seal_is_whole(metadata)
    # One damaged byte cannot change both the version and the name of the checksum.
    if "checksum" in metadata and not whole:
        raise DamagedCheckpointError(path, "the checksum of 'metadata' is wrong")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the checkpoint {path} has format version {version}; this version of darl_jax reads "
            f"version {FORMAT_VERSION}"
        )
    if not whole:
        raise DamagedCheckpointError(path, "'metadata' has no checksum")
    return metadata


def read_config(path: epath.Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The config that a checkpoint was saved with, verified.

    Raises:
        DamagedCheckpointError: the item is damaged.
    """
    config = _read_json(path, "config")
    if json_checksum(config) != metadata["config_checksum"]:
        raise DamagedCheckpointError(path, "the checksum of 'config' is wrong")
    return config


def check_fits(path: epath.Path, metadata: Mapping[str, Any], expected: PyTree) -> None:
    """Whether the arrays of a checkpoint are those of this run, by name, shape and type.

    Raises:
        ValueError: they are not; the message lists those that differ.
    """
    saved = {
        name: f"{array['dtype']} {tuple(array['shape'])}"
        for name, array in metadata["arrays"].items()
    }
    current = {
        name: f"{np.dtype(leaf.dtype).name} {tuple(leaf.shape)}"
        for name, leaf in arrays_by_name(expected).items()
    }
    differences = [
        f"{name}: {saved.get(name, 'absent')} in the checkpoint, "
        f"{current.get(name, 'absent')} in this run"
        for name in sorted(saved.keys() | current.keys())
        if saved.get(name) != current.get(name)
    ]
    if differences:
        raise ValueError(
            f"the checkpoint {path} does not fit this run's model and optimizer; arrays that "
            f"differ: {len(differences)}\n  " + "\n  ".join(shortened(differences))
        )


def read_arrays(path: epath.Path, target: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a checkpoint as nested dicts, laid out as `target` says, not yet verified.

    Processes do not wait for each other here, so that one which finds damage keeps none waiting.

    Raises:
        DamagedCheckpointError: what this process reads is damaged.
    """
    with (
        damage_named(path, "state"),
        contextlib.closing(ocp.StandardCheckpointHandler()) as handler,
    ):
        return handler.restore(path / "state", args=ocp.args.StandardRestore(target))


def check_whole(
    path: epath.Path, metadata: Mapping[str, Any], state: Mapping[str, Any], below: str = ""
) -> None:
    """Whether arrays are those that were saved; every process of a run has to call this.

    Args:
        path: where they were read.
        metadata: of the same checkpoint.
        state: the arrays, as nested dicts.
        below: how the names of those begin that should be in `state`.

    Raises:
        DamagedCheckpointError: an array is missing, or has other bits.
    """
    saved = {
        name: array["checksum"]
        for name, array in metadata["arrays"].items()
        if name.startswith(below)
    }
    found = checksums(arrays_by_name(state))
    wrong = sorted(
        name for name in saved.keys() | found.keys() if saved.get(name) != found.get(name)
    )
    if wrong:
        raise DamagedCheckpointError(path, f"wrong checksum of {', '.join(shortened(wrong))}")


@contextlib.contextmanager
def damage_named(path: epath.Path, item: str) -> Iterator[None]:
    """What reading an item of a damaged checkpoint raises becomes one error that names both.

    Raises:
        DamagedCheckpointError: instead of whatever comes from damaged files. What comes from
            elsewhere (permissions, the network, memory, a device or its driver) passes.
    """
    try:
        yield
    except DamagedCheckpointError:
        raise
    except Exception as error:
        # Orbax raises a bare Exception from what TensorStore says of an array.
        reason = error.__cause__ if type(error) is Exception and error.__cause__ else error
        text = first_line(reason)
        # TensorStore's errors are Python's own types: JAX's are those of devices, never of files.
        elsewhere = isinstance(reason, (MemoryError, ImportError, jax.errors.JaxRuntimeError))
        if isinstance(reason, OSError):
            # A disk that cannot read what it was given is damage, too.
            elsewhere = not isinstance(reason, _GONE) and reason.errno != errno.EIO
        if elsewhere or text.startswith(_NO_DAMAGE):
            raise reason from reason.__cause__
        raise DamagedCheckpointError(path, f"{item!r}: {text}") from error


def first_line(error: BaseException) -> str:
    """What an error says, without the pages of settings that TensorStore appends."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text.split(" [tensorstore_spec")[0]


def named_leaves(tree: PyTree) -> dict[Name, Any]:
    """Leaves by the names on the way to them, in the order of `jax.tree.leaves`."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(_key_name(key) for key in path): leaf for path, leaf in paths}


def to_nested_dict(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree under the same names, in dicts alone."""
    nested: dict[str, Any] = {}
    for path, leaf in named_leaves(tree).items():
        level = nested
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = leaf
    return nested


def quieten_orbax() -> None:
    """Keeps off the screen what Orbax logs, and what becomes of its tasks when one of them fails.

    When an array cannot be written or read, Orbax raises that and closes its event loop at once.
    The tasks of other arrays then fail with nobody to hear it, and TensorStore, still busy with
    them, reports to a closed loop. Each would be a traceback beside the one error that counts.
    """
    # Filters, not levels: Orbax logs through absl's one logger, which is also ours.
    logging.get_absl_logger().addFilter(_is_worth_showing)  # a filter is added only once
    python_logging.getLogger("asyncio").addFilter(_is_worth_showing)
    shown_before = sys.unraisablehook
    if getattr(shown_before, "__module__", None) == __name__:
        return

    def show(unraisable: Any) -> None:
        error, code = unraisable.exc_value, getattr(unraisable.object, "cr_code", None)
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (closed or (code is not None and _ORBAX in code.co_filename)):
            shown_before(unraisable)

    sys.unraisablehook = show


def _is_worth_showing(record: python_logging.LogRecord) -> bool:
    if record.name == "asyncio":
        frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
        places = [record.getMessage(), *(frame.filename for frame in frames)]
        return not any(_ORBAX in place for place in places)
    if _ORBAX not in record.pathname:
        return True
    return record.levelno >= python_logging.WARNING and not record.exc_info


def _key_name(key: Any) -> str:
    """Plain name of one step on the way to a leaf: an attribute, a dict's key or a position."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"a state's containers must name their children; {key!r} does not")


def arrays_by_name(tree: PyTree) -> dict[str, Any]:
    """Leaves by their whole path, such as 'params/backbone/blocks/mlp/up/kernel'."""
    return {"/".join(name): leaf for name, leaf in named_leaves(tree).items()}


def shortened(names: Sequence[str]) -> list[str]:
    """The first of many names, and how many more there are."""
    hidden = len(names) - _LISTED
    return [*names[:_LISTED], f"and {hidden} more"] if hidden > 0 else list(names)


def _read_json(path: epath.Path, item: str) -> dict[str, Any]:
    if not (path / item).is_dir():
        raise DamagedCheckpointError(path, f"it has no {item!r}")
    with damage_named(path, item), contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
        content = handler.restore(path / item)
        if not isinstance(content, dict):
            raise DamagedCheckpointError(path, f"{item!r} holds no keys")
        return dict(content)
