"""Who communicates what with whom in one HLO instruction.

On TPUs a reduce-scatter is a fusion of an all-reduce and a slice; a collective that runs beside a
chain of fusions stands in every one of them, but begins in one; and between slices it is a send
and a receive by way of the hosts.
"""

import dataclasses
import itertools
import math
import re

import numpy as np
from jax.sharding import Mesh

from darl_jax.planning.hlo_text import Computation, Instruction, Module, replica_groups

_GROUPED = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
_KINDS = (*_GROUPED, "collective-permute")
_PARTS = ("all-gather", "all-to-all")  # their operand is a device's part of the array
_NOT_COUNTED = ("collective-broadcast", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Equal communications of one step."""

    kind: str  # all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute
    axes: tuple[str, ...]  # of the mesh, whose devices take part together; () if no axes fit
    bytes: int  # of the whole array in one execution; of a permute, of what a device sends
    count: int  # executions in a step
    group_size: int  # devices that take part together
    between_slices: bool = False  # over the network that joins slices, not inside of them

    @property
    def name(self) -> str:
        """The axes in one word; 'mixed' where the groups are not those of any axes."""
        return "+".join(self.axes) or "mixed"


def slices_of(module: Module, mesh: Mesh) -> np.ndarray:
    """The mesh's flat positions, one row for each slice, as its HLO numbers the devices.

    A program for several TPU slices is that of one of them, with its devices alone.
    """
    positions = np.arange(mesh.size)
    if module.partitions == mesh.size:
        return positions[None]
    number = np.array([getattr(device, "slice_index", 0) for device in mesh.devices.flat])
    rows = [positions[number == one] for one in np.unique(number)]
    if any(len(row) != module.partitions for row in rows):
        raise ValueError(
            f"the HLO is for {module.partitions} devices and the mesh has {mesh.size}, in slices "
            f"of {[len(row) for row in rows]}"
        )
    return np.stack(rows)


def read_collective(
    computation: Computation, instruction: Instruction, mesh: Mesh, slices: np.ndarray
) -> Collective | None:
    """What an instruction communicates; None if nothing does, or does so elsewhere."""
    if instruction.opcode == "send":
        return _between_slices(computation, instruction, mesh, slices)
    kind = instruction.opcode.removesuffix("-start")
    if kind in _NOT_COUNTED:
        raise ValueError(f"{instruction.name}: communication by {kind} is not understood")
    if kind not in _KINDS or continues(computation, instruction):
        return None
    axes, group_size = _partners(kind, instruction, mesh, slices)
    if group_size == 1:
        return None
    size = sum(shape.bytes for shape in computation.operand_shapes(instruction))
    if kind in _PARTS:
        size *= group_size
    if kind == "all-reduce" and _is_scattered(computation, instruction):
        kind = "reduce-scatter"
    return Collective(kind, axes, size, 1, group_size)


def continues(computation: Computation, instruction: Instruction) -> bool:
    """Whether this is a later part of a collective that runs beside TPU's chain of fusions."""
    if 'chain_id="' not in instruction.attributes:
        return False
    return not any(
        user.opcode == "custom-call" and "AsyncCollectiveStart" in user.attributes
        for user, _ in computation.users(instruction.name)
    )


def _between_slices(
    computation: Computation, instruction: Instruction, mesh: Mesh, slices: np.ndarray
) -> Collective:
    """What the TPU's runtime sends to the same device of other slices."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    kind = transfer.group(1).lower().replace("_", "-") if transfer else ""
    if kind not in _GROUPED:
        raise ValueError(f"{instruction.name}: a send that is {kind or 'no collective'} is unknown")
    size = sum(shape.bytes for shape in computation.operand_shapes(instruction))
    if kind in _PARTS:
        size *= len(slices)
    axes = _crossed_axes(slices[:1].repeat(len(slices), 0), slices, mesh)
    return Collective(kind, axes, size, 1, len(slices), between_slices=True)


def _is_scattered(computation: Computation, reduced: Instruction) -> bool:
    """Whether a device keeps only its part, in the same fusion as TPU's reduce-scatter does."""
    kept = computation.root
    while kept.opcode in ("bitcast", "reshape", "copy", "convert"):
        kept = computation.operand(kept, 0)
    if kept.opcode != "dynamic-slice":
        return False
    source = computation.operand(kept, 0)
    while source.opcode in ("bitcast", "reshape", "copy", "convert"):
        source = computation.operand(source, 0)
    return source is reduced


def _partners(
    kind: str, instruction: Instruction, mesh: Mesh, slices: np.ndarray
) -> tuple[tuple[str, ...], int]:
    """The axes of the mesh over which devices communicate, and how many do together."""
    devices = slices.shape[1]
    if kind == "collective-permute":
        pairs = np.array(instruction.integers("source_target_pairs")).reshape(-1, 2)
        axes = _crossed_axes(slices[:, pairs[:, 0]], slices[:, pairs[:, 1]], mesh)
        return axes, math.prod(mesh.shape[axis] for axis in axes)
    has_channel = instruction.attribute("channel_id") != ""
    # https://openxla.org/xla/operation_semantics: without a channel, groups are of replicas, of
    # which there is one; with one and no global ids, of replicas in all partitions.
    if not has_channel:
        return (), 1
    if kind != "all-to-all" and instruction.attribute("use_global_device_ids") != "true":
        groups = [tuple(range(devices))]
    else:
        groups = replica_groups(instruction, devices)
    if sorted(itertools.chain(*groups)) != list(range(devices)):
        raise ValueError(
            f"{instruction.name} is not for {devices} devices: its groups are {groups[:4]}"
        )
    wanted = frozenset(frozenset(own[list(group)].tolist()) for own in slices for group in groups)
    group_size = len(groups[0])
    # Fewer axes first, for one of length 1 changes no group.
    for number in range(len(mesh.axis_names) + 1):
        for axes in itertools.combinations(mesh.axis_names, number):
            size = math.prod(mesh.shape[axis] for axis in axes)
            if size == group_size and wanted == _groups_of(axes, mesh):
                return axes, group_size
    return (), group_size


def _groups_of(axes: tuple[str, ...], mesh: Mesh) -> frozenset[frozenset[int]]:
    places = [mesh.axis_names.index(axis) for axis in axes]
    numbers = np.arange(mesh.size).reshape(mesh.devices.shape)
    moved = np.moveaxis(numbers, places, range(-len(places), 0))
    size = math.prod(mesh.shape[axis] for axis in axes)
    return frozenset(frozenset(group) for group in moved.reshape(-1, size).tolist())


def _crossed_axes(sources: np.ndarray, targets: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which somebody at a flat position sends to another position."""
    places = [
        np.array(np.unravel_index(ids.ravel(), mesh.devices.shape)) for ids in (sources, targets)
    ]
    crossed = (places[0] != places[1]).any(axis=1)
    return tuple(axis for axis, does in zip(mesh.axis_names, crossed, strict=True) if does)
