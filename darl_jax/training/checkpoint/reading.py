"""Layout of a checkpoint, and functions that read one and verify it.

`<workdir>/checkpoints/<step>/` has three items: `state` (every array of the train state under a
plain name, such as `params/backbone/blocks/mlp/up/kernel` or `opt_state/adam/mu/backbone/...`),
`config` and `metadata` (JSON). Names come from the attributes, keys and positions on the way to an
array, so that optimizer states, which are named tuples, need not exist in the code that reads them.

Orbax has no checksum of array bytes, so `metadata` has one for each array, one for the config and
one for itself, beside type and shape of the arrays and the records that were trained on.
"""

import contextlib
import importlib.metadata
import logging as python_logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util
from jaxtyping import PyTree

from darl_jax.training.checkpoint.checksums import checksums, json_checksum

# Incremented whenever earlier checkpoints can no longer be read: other names, other items.
FORMAT_VERSION = 2
FOLDER = "checkpoints"

_LISTED = 10  # paths, files or steps that an error message names before it only counts


class DamagedCheckpointError(ValueError):
    """A checkpoint that cannot be read, or holds other bits than were written, for a reason."""

    def __init__(self, path: epath.Path, reason: str) -> None:
        super().__init__(
            f"the checkpoint {path} cannot be used: {reason}; earlier ones may be whole"
        )
        self.path = path
        self.reason = reason


def absolute_path(path: os.PathLike | str) -> epath.Path:
    """Absolute path of a local folder; a bucket's path stays as it is."""
    if "://" in os.fspath(path):
        return epath.Path(path)
    return epath.Path(path).expanduser().resolve()


def writable_path(path: os.PathLike | str) -> epath.Path:
    """Absolute path of a folder for checkpoints.

    Raises:
        ValueError: the path has a character of glob patterns. Orbax collects the arrays of a save
            with a pattern that begins with this path, finds none, and loses them silently.
    """
    whole = absolute_path(path)
    found = [character for character in "[]*?" if character in str(whole)]
    if found:
        raise ValueError(
            f"no checkpoint can be written below {whole}: Orbax takes {' and '.join(found)} in a "
            "path for a pattern; choose a path without"
        )
    return whole


def restore_params(
    path: os.PathLike | str, step: int | None = None, *, averaged: bool = True
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Reads parameters, config and step of a checkpoint, without the code that wrote it.

    The optimizer's state, which is twice the size of the parameters, is not read.

    Args:
        path: a run's workdir or its folder of checkpoints; local or a bucket.
        step: None for the newest.
        averaged: whether to read the exponential moving average where the run kept one.

    Returns:
        The parameters as nested dicts of numpy arrays; the config as JSON kept it, for
        `darl_jax.config.load`; and the step.
    """
    step_path, metadata, config = _open_checkpoint(path, step)
    has_average = any(name.startswith("ema/") for name in metadata["arrays"])
    item = "ema" if averaged and has_average else "params"
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    closing = contextlib.closing(ocp.PyTreeCheckpointHandler())
    with readable(step_path, "state"), closing as handler:
        wanted = {item: handler.metadata(step_path / "state").tree[item]}
        numpy_args = jax.tree.map(lambda _: as_numpy, wanted)
        args = ocp.args.PyTreeRestore(item=wanted, restore_args=numpy_args, partial_restore=True)
        restored = handler.restore(step_path / "state", args=args)
    check_whole(step_path, metadata, restored, below=f"{item}/")
    return restored[item], config, int(step_path.name)


def restore_config(path: os.PathLike | str, step: int | None = None) -> dict[str, Any]:
    """Reads the config of a checkpoint; arguments and errors as in `restore_params`."""
    return _open_checkpoint(path, step)[2]


def restore_records(path: os.PathLike | str, step: int | None = None) -> str:
    """Reads number and fingerprint of the training records; arguments as in `restore_params`."""
    return _open_checkpoint(path, step)[1]["train_records"]


def _open_checkpoint(
    path: os.PathLike | str, step: int | None
) -> tuple[epath.Path, dict[str, Any], dict[str, Any]]:
    """Folder, metadata and config of a run's checkpoint."""
    quieten_orbax()
    folder = absolute_path(path)
    if (folder / FOLDER).is_dir():
        folder = folder / FOLDER
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
    step_path = folder / str(steps[-1] if step is None else step)
    metadata = read_metadata(step_path)
    return step_path, metadata, read_config(step_path, metadata)


def make_metadata(
    step: int, state: Mapping[str, Any], config: Mapping[str, Any], train_records: str
) -> dict[str, Any]:
    """Content of the item `metadata`, for a state as nested dicts. A collective."""
    arrays = arrays_by_name(state)
    sums = checksums(arrays)
    libraries = ("jax", "flax", "optax", "orbax-checkpoint")
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "train_records": train_records,
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
    return {**content, "checksum": json_checksum(content)}


def read_metadata(path: epath.Path) -> dict[str, Any]:
    """Reads and verifies the item `metadata`; raises ValueError for another format version."""
    metadata = _read_json(path, "metadata")
    content = {key: value for key, value in metadata.items() if key != "checksum"}
    if metadata.get("checksum") != json_checksum(content):
        raise DamagedCheckpointError(path, "wrong checksum of 'metadata'")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"the checkpoint {path} has format version {version}; this version of darl_jax reads "
            f"version {FORMAT_VERSION}"
        )
    return metadata


def read_config(path: epath.Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Reads and verifies the config of a checkpoint."""
    config = _read_json(path, "config")
    if json_checksum(config) != metadata["config_checksum"]:
        raise DamagedCheckpointError(path, "wrong checksum of 'config'")
    return config


def names_in(path: epath.Path) -> set[str]:
    """Names of the arrays in a step's folder. Raises where the data of one is missing."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        return set(arrays_by_name(handler.metadata(path / "state").tree))


def check_fits(path: epath.Path, metadata: Mapping[str, Any], expected: PyTree) -> None:
    """Raises ValueError where names, shapes or types differ from those of a run's arrays."""
    saved = {name: f"{a['dtype']} {tuple(a['shape'])}" for name, a in metadata["arrays"].items()}
    arrays = arrays_by_name(expected).items()
    current = {name: f"{np.dtype(a.dtype).name} {tuple(a.shape)}" for name, a in arrays}
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
    """Reads the arrays for abstract ones with shardings; neither verifies nor waits for others."""
    with readable(path, "state"), contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        return handler.restore(path / "state", args=ocp.args.StandardRestore(target))


def check_whole(
    path: epath.Path, metadata: Mapping[str, Any], state: Mapping[str, Any], below: str = ""
) -> None:
    """Raises DamagedCheckpointError unless arrays below a prefix are those saved. A collective."""
    arrays = metadata["arrays"].items()
    saved = {name: array["checksum"] for name, array in arrays if name.startswith(below)}
    found = checksums(arrays_by_name(state))
    wrong = sorted({name for name, _ in saved.items() ^ found.items()})
    if wrong:
        raise DamagedCheckpointError(path, f"wrong checksum of {', '.join(shortened(wrong))}")


@contextlib.contextmanager
def readable(path: epath.Path, item: str) -> Iterator[None]:
    """Turns exceptions while an item is read into DamagedCheckpointError, which names the item.

    Not those of the devices, which fail in the same way for every checkpoint.
    """
    try:
        yield
    except (DamagedCheckpointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        # Orbax raises a bare Exception from TensorStore's error of an array.
        reason = error.__cause__ if type(error) is Exception and error.__cause__ else error
        raise DamagedCheckpointError(path, f"{item!r}: {first_line(reason)}") from error


def first_line(error: BaseException) -> str:
    """First line of an error's message, without the settings that TensorStore appends."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text.split(" [tensorstore_spec")[0]


def arrays_by_name(tree: PyTree) -> dict[str, Any]:
    """Leaves of a tree by names such as 'params/backbone/blocks/mlp/up/kernel'."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def to_nested_dict(tree: PyTree) -> dict[str, Any]:
    """The same leaves under the same names, in nested dicts."""
    return traverse_util.unflatten_dict(arrays_by_name(tree), sep="/")


def shortened(names: Sequence[str]) -> list[str]:
    """The first names of many, and the number of the others."""
    hidden = len(names) - _LISTED
    return [*names[:_LISTED], f"and {hidden} more"] if hidden > 0 else list(names)


def quieten_orbax() -> None:
    """Hides Orbax's log lines below a warning, and tracebacks beside the errors that it raises."""
    # A filter, not a level: Orbax logs through absl's one logger, which is also ours.
    logging.get_absl_logger().addFilter(_is_worth_showing)  # a filter is added only once
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _show_unraisable


def _is_worth_showing(record: python_logging.LogRecord) -> bool:
    if os.path.join("orbax", "checkpoint") not in record.pathname:
        return True
    return record.levelno >= python_logging.WARNING and not record.exc_info


def _show_unraisable(unraisable: Any) -> None:
    # When an array cannot be written, Orbax raises and closes its event loop, and TensorStore
    # reports each other array to the closed loop, also after the one error has been printed.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _read_json(path: epath.Path, item: str) -> dict[str, Any]:
    if not (path / item).is_dir():
        raise DamagedCheckpointError(path, f"it has no {item!r}")
    with readable(path, item), contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
        content = handler.restore(path / item)
    if not isinstance(content, dict):
        raise DamagedCheckpointError(path, f"{item!r} holds no keys")
    return dict(content)
