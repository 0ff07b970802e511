"""Collectives of a compiled step by mesh axes, read from its optimized HLO text.

No public interface of JAX or XLA lists the communication that GSPMD inserts: a jaxpr does not have
it, and `cost_analysis` says nothing of it. Of the text only computations, loops and collectives are
parsed (grammar: https://openxla.org/xla/operation_semantics), as XLA prints them for CPU and TPU.
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_PARTS = ("all-gather", "all-to-all")  # their operand is one device's part of the array
_UNKNOWN = ("collective-broadcast", "ragged-all-to-all")
_LAYOUT_ONLY = ("bitcast", "reshape", "copy", "convert")

_HEADER = re.compile(r"(ENTRY )?(%[\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?(%[\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?\)|[\d,]*)\))? \{(.*?)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Equal collectives of one step."""

    kind: str  # all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute
    axes: tuple[str, ...]  # mesh axes over which a group communicates; () if no axes fit
    bytes: int  # of the whole array in one execution; of a permute, of what a device sends
    count: int  # executions in a step
    group_size: int  # devices of a group
    between_slices: bool = False  # over the network that joins slices, not inside of them


class _Instruction(NamedTuple):
    name: str
    is_root: bool
    shape: str
    opcode: str
    argument: str  # names of operands, or the value of a constant
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%[\w.\-]+", self.argument)


_Computation = Mapping[str, _Instruction]


def collectives(hlo_text: str, mesh: Mesh) -> list[Collective]:
    """Returns all collectives of a step, equal ones merged, the most bytes first.

    `hlo_text` is `compiled.as_text()`, whose device i is the flat mesh's. Loop bodies count once
    for each trip; of a conditional the branch with the most bytes counts.

    Raises:
      ValueError: the text has a kind of collective, group or loop that is not known.
    """
    computations, entry = _parse(hlo_text)
    slices = _slices(hlo_text, mesh)

    def total_bytes(found: Mapping[Collective, int]) -> int:
        return sum(each.bytes * count for each, count in found.items())

    @functools.cache
    def within(name: str) -> collections.Counter[Collective]:
        found: collections.Counter[Collective] = collections.Counter()
        for instruction in computations[name].values():
            called = _called(instruction)
            if own := _read(computations[name], instruction, mesh, slices):
                found[own] += 1
            elif instruction.opcode == "while":
                body = within(called["body"][0])
                # The length of a loop without collectives need not be known.
                trips = _trips(computations, instruction) if body else 0
                found.update({each: count * trips for each, count in body.items()})
            elif instruction.opcode == "conditional":
                branches = itertools.chain(*called.values())
                found.update(max(map(within, branches), key=total_bytes))
            else:
                for callee in itertools.chain(*called.values()):
                    found.update(within(callee))
        return found

    merged = [dataclasses.replace(each, count=n) for each, n in within(entry).items()]
    return sorted(merged, key=lambda each: (-each.bytes * each.count, each.kind, each.axes))


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Returns (instructions by name for each computation, name of the entry computation)."""
    computations: dict[str, _Computation] = {}
    entry, lines = "", iter(text.splitlines())
    for line in lines:
        if not (header := _HEADER.match(line)):
            continue
        computation: dict[str, _Instruction] = {}
        for inner in itertools.takewhile(lambda each: each != "}", lines):
            if match := _INSTRUCTION.match(inner):
                root, name, shape, opcode, rest = match.groups()
                argument, _, attributes = rest.partition(")")
                computation[name] = _Instruction(
                    name, bool(root), shape, opcode, argument, attributes
                )
        computations[header[2]] = computation
        entry = header[2] if header[1] else entry
    if not entry:
        raise ValueError("the text has no ENTRY computation; pass compiled.as_text()")
    return computations, entry


def _called(instruction: _Instruction) -> dict[str, list[str]]:
    """Returns the computations that an instruction calls, by attribute."""
    attributes = re.findall(
        r"\b(calls|to_apply|body|\w+_computations?)=(\{[^}]*\}|%[\w.\-]+)", instruction.attributes
    )
    return {key: re.findall(r"%[\w.\-]+", value) for key, value in attributes}


def _trips(computations: Mapping[str, _Computation], loop: _Instruction) -> int:
    """Returns the trips of a loop: as the compiler notes them, or the limit of its counter.

    A scan of JAX counts from 0 by 1, so the one integer of its condition is its length.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(known[1])
    condition = computations[re.findall(r"condition=(%[\w.\-]+)", loop.attributes)[0]]
    limits = [
        int(each.argument)
        for each in condition.values()
        if each.opcode == "constant" and each.argument.isdigit()
    ]
    if len(limits) != 1:
        raise ValueError(f"the number of trips of the loop {loop.name} is not known")
    return limits[0]


def _read(
    computation: _Computation, instruction: _Instruction, mesh: Mesh, slices: np.ndarray
) -> Collective | None:
    """Returns the collective that an instruction executes, or None if it executes none."""
    if instruction.opcode == "send":
        return _between_slices(computation, instruction, mesh, slices)
    kind = instruction.opcode.removesuffix("-start")
    if kind in _UNKNOWN:
        raise ValueError(f"{instruction.name}: collectives of the kind {kind} are not known")
    if kind not in _KINDS or _continues(computation, instruction):
        return None
    if kind == "collective-permute":
        text = instruction.attributes.partition("source_target_pairs=")[2].partition("}}")[0]
        pairs = np.array(_integers(text)).reshape(-1, 2)
        axes = _crossed_axes(slices[:, pairs[:, 0]], slices[:, pairs[:, 1]], mesh)
        group_size = math.prod(mesh.shape[axis] for axis in axes)
    else:
        groups = _replica_groups(instruction.attributes, slices.shape[1])
        axes, group_size = _axes_of(groups, mesh, slices), groups.shape[1]
    if group_size == 1:
        return None
    size = _operand_bytes(computation, instruction) * (group_size if kind in _PARTS else 1)
    if kind == "all-reduce" and _is_scattered(computation, instruction):
        kind = "reduce-scatter"
    return Collective(kind, axes, size, 1, group_size)


def _continues(computation: _Computation, instruction: _Instruction) -> bool:
    """True where this continues a collective that the TPU overlaps with a chain of fusions.

    Each fusion of the chain repeats the instruction; the first one ends in AsyncCollectiveStart.
    """
    return 'chain_id="' in instruction.attributes and not any(
        "AsyncCollectiveStart" in user.attributes and instruction.name in user.operands
        for user in computation.values()
    )


def _is_scattered(computation: _Computation, reduced: _Instruction) -> bool:
    """True where an all-reduce's fusion keeps one device's slice: the TPU's reduce-scatter."""
    root = next(each for each in computation.values() if each.is_root)
    kept = _without_layout(computation, root)
    return (
        kept.opcode == "dynamic-slice"
        and _without_layout(computation, computation[kept.operands[0]]) is reduced
    )


def _without_layout(computation: _Computation, instruction: _Instruction) -> _Instruction:
    while instruction.opcode in _LAYOUT_ONLY:
        instruction = computation[instruction.operands[0]]
    return instruction


def _slices(text: str, mesh: Mesh) -> np.ndarray:
    """Returns flat mesh positions, one row for each TPU slice, in the HLO's order of devices.

    A program for several slices is that of one slice, with the devices of this slice alone.
    """
    partitions = re.match(r"HloModule [^\n]*\bnum_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1
    positions = np.arange(mesh.size)
    if devices == mesh.size:
        return positions[None]
    number = np.array([getattr(device, "slice_index", 0) for device in mesh.devices.flat])
    rows = [positions[number == one] for one in np.unique(number)]
    if any(len(row) != devices for row in rows):
        raise ValueError(f"the HLO is for {devices} devices and the mesh has {mesh.size}")
    return np.stack(rows)


def _between_slices(
    computation: _Computation, instruction: _Instruction, mesh: Mesh, slices: np.ndarray
) -> Collective:
    """Returns the collective of a send of the TPU's runtime to the same device of other slices."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    kind = transfer[1].lower().replace("_", "-") if transfer else ""
    if kind not in _KINDS:
        raise ValueError(f"{instruction.name}: a send that belongs to no collective is not known")
    size = _operand_bytes(computation, instruction) * (len(slices) if kind in _PARTS else 1)
    axes = _crossed_axes(slices[:1].repeat(len(slices), 0), slices, mesh)
    return Collective(kind, axes, size, 1, len(slices), between_slices=True)


def _operand_bytes(computation: _Computation, instruction: _Instruction) -> int:
    return sum(_bytes(computation[name].shape) for name in instruction.operands)


def _bytes(shape: str) -> int:
    """Returns the bytes of an array, or of all arrays of a tuple."""
    total = 0
    for dtype, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
        width = re.search(r"\d+", dtype)
        bits = int(width[0]) if width else 8 * (dtype == "pred")
        total += -(-math.prod(_integers(dims)) * bits // 8)
    return total


def _axes_of(groups: np.ndarray, mesh: Mesh, slices: np.ndarray) -> tuple[str, ...]:
    """Returns the mesh axes whose groups of devices these are, or () if there are none."""
    wanted = {frozenset(own[group].tolist()) for own in slices for group in groups}
    # Fewer axes first: an axis of length 1 changes no group.
    for number in range(len(mesh.axis_names) + 1):
        for axes in itertools.combinations(mesh.axis_names, number):
            last = [mesh.axis_names.index(axis) for axis in axes]
            positions = np.arange(mesh.size).reshape(mesh.devices.shape)
            moved = np.moveaxis(positions, last, range(-len(last), 0))
            size = math.prod(mesh.shape[axis] for axis in axes)
            if wanted == {frozenset(group) for group in moved.reshape(-1, size).tolist()}:
                return axes
    return ()


def _crossed_axes(sources: np.ndarray, targets: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes along which any source and its target differ."""
    places = [
        np.array(np.unravel_index(ids.ravel(), mesh.devices.shape)) for ids in (sources, targets)
    ]
    crossed = (places[0] != places[1]).any(axis=1)
    return tuple(axis for axis, does in zip(mesh.axis_names, crossed, strict=True) if does)


def _replica_groups(attributes: str, devices: int) -> np.ndarray:
    """Reads the groups of a collective, one a row, from the text behind its operands.

    XLA's notations: {{0,1},{2,3}}; {} for all; [groups,size]<=[reshape]T(transpose);
    mesh['a'=2,'b'=4], device_ids=([reshape]T(transpose)) {'a','b':(1)2}.

    Raises:
      ValueError: another notation, or groups of other devices.
    """
    text = attributes.partition("replica_groups=")[2]
    # Without a channel groups are of replicas, and jax.jit makes one.
    if "channel_id=" not in attributes:
        groups = np.arange(devices)[:, None]
    elif match := re.match(r"\[([\d,]+)\]<=(\S+)", text):
        groups = _iota(match[2]).reshape(_integers(match[1]))
    elif match := _MESH.match(text):
        groups = _mesh_groups(*match.groups())
    elif text.startswith("{}"):
        groups = np.arange(devices)[None]
    elif match := re.match(r"\{(\{.*?\})\}", text):
        groups = np.array([_integers(group) for group in match[1].split("},{")])
    else:
        raise ValueError(f"replica groups of an unknown notation: {text[:80]!r}")
    if sorted(groups.ravel()) != list(range(devices)):
        raise ValueError(f"replica groups {text[:80]!r} are not those of {devices} devices")
    return groups


def _mesh_groups(axes: str, device_ids: str | None, over: str) -> np.ndarray:
    """Reads the notation with named axes."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if device_ids:
        ids = _iota(device_ids) if device_ids[0] == "[" else np.array(_integers(device_ids))
    # ('a':(2)4: 4 devices along a part of the axis, with 2 parts before it.)
    parts = {
        name: (int(before or 1), int(part or sizes[name]))
        for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", over)
    }
    shape: list[int] = []
    grouped = []
    for name, size in sizes.items():
        before, part = parts.get(name, (1, 1))
        grouped.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    rows = np.moveaxis(ids.reshape(shape), grouped, range(-len(grouped), 0))
    return rows.reshape(-1, math.prod(part for _, part in parts.values()))


def _iota(text: str) -> np.ndarray:
    """Reads [4,2]T(1,0): 0, 1, 2 ... in this shape, transposed, flat."""
    match = _IOTA.match(text)
    assert match is not None, text
    shape = _integers(match[1])
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_integers(match[2]) if match[2] else None).ravel()


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))
