"""Machines for which a step can be compiled without their presence."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from darl_jax.planning.roofline import Position, islands, torus_shape
from darl_jax.runtime.chips import CHIPS, Chip

_TPUS = tuple(name for name, chip in CHIPS.items() if chip.interconnect.torus_axes)
_GPUS = tuple(name for name in CHIPS if name not in _TPUS)
VALID_FORMS = (
    f"TPU slices as v5e:16x16 or v5p:8x8x8 ({', '.join(_TPUS)}), several of them as 2xv5e:16x16; "
    f"GPUs as h100:8 ({', '.join(_GPUS)}); cpu:8 for memory and collectives alone"
)

# Keeps libtpu from queries to a TPU's host, and lets two programs use it at once.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: without one libtpu logs an error
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that need not be present, with their positions and rates."""

    name: str
    chip: Chip | None  # None for plain CPU devices, which have no rates here
    devices: tuple[Any, ...]  # as jax.Device, which absent ones need not be
    positions: tuple[Position, ...]  # of the devices, in their order
    compiler: str  # 'TPU' or 'CPU'

    @property
    def torus(self) -> tuple[int, ...]:
        """Devices along each axis of a slice; empty for devices behind a switch."""
        return torus_shape(self.positions)

    def groups(self, mesh: Mesh, axes: tuple[str, ...]) -> list[list[Position]]:
        """Returns the positions of each group of devices along these axes of a mesh."""
        position_of = dict(zip(self.devices, self.positions, strict=True))
        last = [mesh.axis_names.index(axis) for axis in axes]
        grid = np.moveaxis(mesh.devices, last, range(-len(last), 0))
        size = int(np.prod([mesh.shape[axis] for axis in axes]))
        return [[position_of[device] for device in group] for group in grid.reshape(-1, size)]


def open_topology(name: str) -> Topology:
    """Returns the devices of a topology by name; call it before JAX starts a backend.

    Raises:
      ValueError: the name is none of VALID_FORMS.
      ImportError: the TPU compiler is needed and not installed.
    """
    known = "|".join(map(re.escape, (*_TPUS, *_GPUS, "cpu")))
    match = re.fullmatch(rf"(?:([1-9]\d*)x)?({known}):([1-9]\d*(?:x[1-9]\d*)*)", name)
    if match is None:
        raise ValueError(f"--topology={name} is unknown; valid are {VALID_FORMS}")
    slices, kind, shape = match.groups()
    # Nothing runs on the accelerators of this machine.
    jax.config.update("jax_platforms", "cpu")
    if kind in _TPUS:
        return _tpus(name, CHIPS[kind], f"{kind}:{shape}", int(slices or 1))
    if slices or "x" in shape:
        raise ValueError(f"--topology={name}: {kind} takes the number of devices, as {kind}:8")
    number = int(shape)
    jax.config.update("jax_num_cpu_devices", number)
    chip = CHIPS.get(kind)
    positions = islands(number, chip.interconnect) if chip else [Position(0)] * number
    return Topology(name, chip, tuple(jax.devices()), tuple(positions), "CPU")


def _tpus(name: str, chip: Chip, shape: str, slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"--topology={name} needs the TPU compiler, libtpu, which is not installed; on Linux "
            "x86-64: python3 launch/local.py --extra tpu install"
        )
    # A program for absent TPUs can be written to the compilation cache but not read from it.
    jax.config.update("jax_enable_compilation_cache", False)
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chip.name == "v4":  # Its two cores are one device, as on a v4 host by default.
        options["chip_config_name"] = "megacore"
    try:
        description = topologies.get_topology_desc(shape, platform="tpu", **options)
        devices: list[Any] = description.devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
        raise ValueError(
            f"--topology={name}: the TPU compiler has no such slice ({reason}); valid are "
            f"{VALID_FORMS}"
        ) from error
    # Devices of a single slice have no slice_index.
    positions = [Position(getattr(each, "slice_index", 0), tuple(each.coords)) for each in devices]
    return Topology(name, chip, tuple(devices), tuple(positions), "TPU")
