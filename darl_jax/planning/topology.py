"""The machines that a step can be compiled for without having them."""

import dataclasses
import functools
import importlib.util
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from darl_jax.planning.roofline import Place, islands, torus_shape
from darl_jax.runtime.chips import CHIPS, Chip

_TPUS = tuple(name for name, chip in CHIPS.items() if chip.interconnect.torus_axes)
_GPUS = tuple(name for name in CHIPS if name not in _TPUS)
VALID_FORMS = (
    f"TPU slices as v5e:16x16 or v5p:8x8x8 ({', '.join(_TPUS)}), several of them as 2xv5e:16x16; "
    f"GPUs as h100:8 ({', '.join(_GPUS)}); cpu:8 for memory and collectives alone"
)

# What libtpu would otherwise ask of a machine that it takes for a TPU's host, and the lock that
# keeps a second program from a TPU.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any: it is only missed aloud
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that need not be there, and what is known of them."""

    name: str
    chip: Chip | None  # None for plain CPU devices, which are not judged
    devices: tuple[jax.Device, ...]
    places: tuple[Place, ...]  # of the devices, in their order
    compiler: str  # 'TPU' or 'CPU'

    @property
    def torus(self) -> tuple[int, ...]:
        """Devices along each axis of a slice; empty for what a switch joins."""
        return torus_shape(self.places)

    def groups(self, mesh: Mesh, axes: tuple[str, ...]) -> list[list[Place]]:
        """The places of the devices that differ along these axes of a mesh alone."""
        place_of = dict(zip(self.devices, self.places, strict=True))
        last = [mesh.axis_names.index(axis) for axis in axes]
        grid = np.moveaxis(mesh.devices, last, range(-len(last), 0))
        size = int(np.prod([mesh.shape[axis] for axis in axes]))
        return [[place_of[device] for device in group] for group in grid.reshape(-1, size)]


def open_topology(name: str) -> Topology:
    """The devices that a name stands for; to be called before JAX has started a backend.

    Raises:
      ValueError: the name is none of VALID_FORMS.
      ImportError: TPUs are asked for and their compiler is not installed.
    """
    known = "|".join(map(re.escape, (*_TPUS, *_GPUS, "cpu")))
    match = re.fullmatch(rf"(?:([1-9]\d*)x)?({known}):([1-9]\d*(?:x[1-9]\d*)*)", name)
    if match is None:
        raise ValueError(f"--topology={name} is unknown; valid are {VALID_FORMS}")
    slices, kind, shape = match.groups()
    # Whatever accelerator this machine has: nothing is run on it.
    jax.config.update("jax_platforms", "cpu")
    if kind in _TPUS:
        return _tpus(name, CHIPS[kind], f"{kind}:{shape}", int(slices or 1))
    if slices or "x" in shape:
        raise ValueError(f"--topology={name}: {kind} takes the number of devices, as {kind}:8")
    number = int(shape)
    jax.config.update("jax_num_cpu_devices", number)
    chip = CHIPS.get(kind)
    places = islands(number, chip.interconnect) if chip else [Place(0)] * number
    return Topology(name, chip, tuple(jax.devices()), tuple(places), "CPU")


def _tpus(name: str, chip: Chip, shape: str, slices: int) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"--topology={name} needs the TPU compiler, libtpu, which is not installed; on Linux "
            "x86-64 with Python 3.12 or newer: python3 launch/local.py --extra tpu install"
        )
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    describe = functools.partial(topologies.get_topology_desc, shape, platform="tpu")
    if slices > 1:
        describe = functools.partial(describe, num_slices=slices)
    if (
        chip.name == "v4"
    ):  # Its two cores are one device, as they are by default where there are v4.
        describe = functools.partial(describe, chip_config_name="megacore")
    try:
        devices = describe().devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
        raise ValueError(
            f"--topology={name}: the TPU compiler has no such slice ({reason}); valid are "
            f"{VALID_FORMS}"
        ) from error
    places = [_place(device) for device in devices]
    return Topology(name, chip, tuple(devices), tuple(places), "TPU")


def _place(device: Any) -> Place:
    # A single slice has no number.
    return Place(getattr(device, "slice_index", 0), tuple(device.coords))
