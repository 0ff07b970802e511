"""Compiled steps are kept, so that nothing need be compiled twice.

JAX's cache is for a run that starts again. For a step that plan.py compiled elsewhere there are
files: one line of JSON (the format, what the step was compiled for, the hash of the rest) and the
executable as JAX serialises it. Reading one can run whatever its writer wished: read only files
that you made.
"""

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import serialize_executable
from jax.sharding import Mesh

from darl_jax import config as config_lib
from darl_jax.config import TrainConfig

_FORMAT = "darl_jax executable 1"

# Keys that the compiled step does not depend on.
_NOT_COMPILED = (
    "seed",
    "total_steps",
    "total_epochs",
    "max_dropped_in_a_row",
    "log_every_steps",
    "log_examples",
    "checkpoint",
    "evaluation",
    "profile",
    "mesh",
)
_DATA_COMPILED = ("image_size", "channels", "mean", "std")


def keep_in(workdir: os.PathLike | str) -> None:
    """Has JAX keep what it compiles in `<workdir>/compilation_cache`.

    JAX_COMPILATION_CACHE_DIR, where it is set, names a folder for all runs instead. What cannot be
    read or written there is compiled and kept in memory alone, with a warning.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = epath.Path(workdir) / "compilation_cache"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_or_load(
    lowered: jax.stages.Lowered,
    config: TrainConfig,
    mesh: Mesh,
    *,
    attention: str,
    path: str | None,
) -> jax.stages.Compiled:
    """The step, compiled here or, where there is a path, read from there.

    Raises:
      ValueError: what is read there does not fit.
      OSError: it cannot be read.
    """
    began = time.monotonic()
    if path is None:
        step = lowered.compile()
        logging.info("Compiled the step in %.1f s", time.monotonic() - began)
        return step
    description = describe(config, mesh, lowered, attention=attention)
    step = load_executable(path, lowered, mesh, description=description)
    logging.info("Loaded the step from %s in %.1f s", path, time.monotonic() - began)
    return step


def describe(
    config: TrainConfig, mesh: Mesh, lowered: jax.stages.Lowered, *, attention: str
) -> dict[str, Any]:
    """What a compiled step depends on: where it runs, the versions, the config, the program.

    Args:
      config: of the run.
      mesh: all devices of the run.
      lowered: the step before it is compiled; its hash stands for the program's own code and for
        whatever the config does not show, such as the schedule's length.
      attention: the kernel that `config.model.attention` stands for on these devices.
    """
    values = config_lib.to_dict(config)
    kept = {key: value for key, value in values.items() if key not in _NOT_COMPILED}
    kept["data"] = {key: values["data"][key] for key in _DATA_COMPILED}
    kept["model"] |= {"attention": attention}
    device = mesh.devices.flat[0]
    versions = {"jax": jax.__version__, "jaxlib": _version("jaxlib")}
    if device.platform == "tpu":
        versions["libtpu"] = _version("libtpu")
    description = {
        "mesh": dict(mesh.shape),
        "devices": {
            "kind": device.device_kind,
            "number": mesh.devices.size,
            "order": _order(mesh),
        },
        "versions": versions,
        "config": kept,
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
    }
    return json.loads(json.dumps(description))  # tuples become lists, as they do in a file


def save_executable(
    path: epath.PathLike, compiled: jax.stages.Compiled, *, description: Mapping[str, Any]
) -> None:
    """Writes a compiled step and what it was compiled for.

    Args:
      path: the file; a bucket's address serves too.
      compiled: the step.
      description: as `describe` returns it.
    """
    payload, _, _ = serialize_executable.serialize(compiled)
    header = {
        "format": _FORMAT,
        "description": description,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    epath.Path(path).write_bytes(json.dumps(header).encode() + b"\n" + payload)


def load_executable(
    path: epath.PathLike, lowered: jax.stages.Lowered, mesh: Mesh, *, description: Mapping[str, Any]
) -> jax.stages.Compiled:
    """A compiled step from a file, in the place of `lowered.compile()`.

    Args:
      path: what `save_executable` wrote.
      lowered: the step of this run, not compiled.
      mesh: all devices of this run.
      description: what this run needs, as `describe` returns it.

    Raises:
      ValueError: the file is no executable, is damaged, or was compiled for something else; the
        message names what differs.
      OSError: it cannot be read.
    """
    head, newline, payload = epath.Path(path).read_bytes().partition(b"\n")
    try:
        header = json.loads(head)
        whole = hashlib.sha256(payload).hexdigest() == header["sha256"]
        found = header["description"] if header["format"] == _FORMAT else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--executable={path} is no file of --write_executable") from error
    if found is None:
        raise ValueError(
            f"--executable={path} has the format {header['format']!r} and not {_FORMAT!r}; write "
            "it again with python -m darl_jax.plan"
        )
    if not newline or not whole:
        raise ValueError(f"--executable={path} is damaged: its contents do not match their hash")
    differences = _differences(found, description)
    if differences:
        raise ValueError(
            f"--executable={path} was compiled for something else: {'; '.join(differences)}. "
            "Write it again with python -m darl_jax.plan"
        )
    return serialize_executable.deserialize_and_load(
        payload,
        lowered.in_tree,
        lowered.out_tree,
        backend=mesh.devices.flat[0].client,
        execution_devices=list(mesh.devices.flat),
    )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line for each key in which a file is not what is wanted."""
    old, new = _dotted(found), _dotted(wanted)
    lines = [
        f"{key} is {old.get(key, 'absent')!r} in the file and {new.get(key, 'absent')!r} here"
        for key in sorted(old.keys() | new.keys())
        if key != "program" and old.get(key) != new.get(key)
    ]
    if not lines and old.get("program") != new.get("program"):
        # The config's keys agree, so it is something that they do not show.
        return ["the code of the step, or the length of the run or of the dataset, is another"]
    return lines


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        below = _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else None
        flat |= {f"{prefix}{key}": value} if below is None else below
    return flat


def _order(mesh: Mesh) -> str:
    """A hash of where each device of the mesh stands; numbers alone may mean other chips."""
    places = [
        (each.id, getattr(each, "slice_index", 0), *getattr(each, "coords", ()))
        for each in mesh.devices.flat
    ]
    return hashlib.sha256(repr(places).encode()).hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def log_memory(step: jax.stages.Compiled) -> None:
    """Says what the compiled step takes on a device, where the compiler tells."""
    memory = step.memory_analysis()
    if memory is not None:
        logging.info(
            "A device holds %.2f GiB of state and batch and %.2f GiB of activations and the like",
            memory.argument_size_in_bytes / 2**30,
            memory.temp_size_in_bytes / 2**30,
        )
