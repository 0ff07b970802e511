"""Reads the text of an optimized HLO module (`compiled.as_text()`) into a few dataclasses.

The grammar is XLA's, https://openxla.org/xla/operation_semantics and xla/hlo/parser. Only what
`hlo.py` asks for is kept: shapes with their memory space, operands by name, and attributes as text.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%[\w.\-]+")
_HEADER = re.compile(r"(ENTRY )?(%[\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?(%[\w.\-]+) = (.*)")
_MESH_GROUPS = re.compile(
    r"mesh\[([^\]]*)\](?:, device_ids=\((\[.*?\]T\(.*?\)|[\d,]*)\))? \{(.*?)\}"
)

_BRACKETS = {"(": ")", "{": "}", "[": "]"}


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """One array, or one leaf of a tuple."""

    dtype: str
    dims: tuple[int, ...]
    layout: str  # without its braces, as in "1,0:T(8,128)(2,1)S(1)"

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes of the elements alone."""
        return _bytes(self.dtype, self.size)

    @property
    def hbm_bytes(self) -> int:
        """Bytes that it takes of the main memory, with the padding of its tiles; 0 elsewhere."""
        space = re.search(r"S\((\d+)\)", self.layout)
        if space and space.group(1) != "0":
            return 0
        minor_to_major, _, tiling = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        if not tile or not minor_to_major:
            return self.bytes
        padded = [self.dims[int(axis)] for axis in minor_to_major.split(",")]
        for i, multiple in enumerate(reversed([int(n) for n in tile.group(1).split(",")])):
            if i < len(padded):
                padded[i] = -(-padded[i] // multiple) * multiple
        return _bytes(self.dtype, math.prod(padded))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]  # of the result; a tuple's leaves in order
    operands: tuple[str, ...]  # names
    argument: str  # the text of the operands: the number of a parameter, the value of a constant
    attributes: str

    def attribute(self, name: str) -> str:
        """The text of an attribute, without its braces or quotes; empty where there is none."""
        found = re.search(rf"(?:^|, ){name}=", self.attributes)
        if not found:
            return ""
        rest = self.attributes[found.end() :]
        if rest.startswith("{"):
            return rest[1 : _closing(rest) - 1]
        return rest.partition(", ")[0].strip('"')

    def integers(self, name: str) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        return tuple(int(n) for n in re.findall(r"-?\d+", self.attribute(name)))


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function: its instructions by name, in order, and the one it returns."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that makes an operand."""
        return self.instructions[instruction.operands[index]]

    def operand_shapes(self, instruction: Instruction) -> list[ArrayShape]:
        """The leaves of all operands."""
        return [s for name in instruction.operands for s in self.instructions[name].shapes]

    def parameter(self, index: int) -> Instruction:
        """A parameter by its number."""
        for instruction in self.instructions.values():
            if instruction.opcode == "parameter" and int(instruction.argument) == index:
                return instruction
        raise ValueError(f"the computation {self.name} has no parameter {index}")

    def users(self, name: str) -> Iterator[tuple[Instruction, int]]:
        """Who reads an instruction's result, and as which operand."""
        for instruction in self.instructions.values():
            for index, operand in enumerate(instruction.operands):
                if operand == name:
                    yield instruction, index


@dataclasses.dataclass(frozen=True)
class Module:
    """All computations by name, the name of the one that is run, and on how many devices."""

    computations: Mapping[str, Computation]
    entry: str
    partitions: int


def parse(text: str) -> Module:
    """Reads a module.

    Raises:
      ValueError: it is not an HLO module, or runs replicas, which jax.jit never makes.
    """
    replicas = re.match(r"HloModule [^\n]*\breplica_count=(\d+)", text)
    if replicas and replicas.group(1) != "1":
        raise ValueError(f"the HLO module has {replicas.group(1)} replicas; 1 is understood")
    # The one attribute that runs over several lines is that of a Pallas kernel.
    text = re.sub(r"kernel_metadata=\{\n(.*)\n\}", r"kernel_metadata={\1}", text)
    computations, entry = {}, ""
    lines = iter(text.splitlines())
    for line in lines:
        header = _HEADER.match(line)
        if not header:
            continue
        computation = _computation(
            header.group(2), itertools.takewhile(lambda inner: not inner.startswith("}"), lines)
        )
        computations[computation.name] = computation
        if header.group(1):
            entry = computation.name
    if not entry:
        raise ValueError("there is no ENTRY in the text; give an HLO module, compiled.as_text()")
    partitions = re.match(r"HloModule [^\n]*\bnum_partitions=(\d+)", text)
    return Module(computations, entry, int(partitions.group(1)) if partitions else 1)


def replica_groups(instruction: Instruction, devices: int) -> list[tuple[int, ...]]:
    """The groups of devices that take part together, in any of XLA's four notations.

    {{0,1},{2,3}}; {} for all; [groups,size]<=[reshape]T(transpose);
    mesh['a'=2,'b'=4], device_ids=([reshape]T(transpose)) {'a','b':(1)2}.

    Raises:
      ValueError: another notation.
    """
    value = re.search(r"replica_groups=(.*)", instruction.attributes)
    text = value.group(1) if value else ""
    iota = re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text)
    mesh = _MESH_GROUPS.match(text)
    if iota:
        groups = _iota(iota.group(2)).reshape(_integers(iota.group(1)))
    elif mesh:
        groups = _mesh_groups(*mesh.groups())
    elif text.startswith("{}"):
        groups = np.arange(devices)[None]
    elif text.startswith("{{"):
        listed = text[1 : _closing(text) - 1]
        return [_integers(group) for group in re.findall(r"\{([\d,]*)\}", listed)]
    else:
        raise ValueError(f"{instruction.name}: replica groups of an unknown kind: {text[:80]}")
    return [tuple(group) for group in groups.tolist()]


def _mesh_groups(axes: str, device_ids: str | None, over: str) -> np.ndarray:
    """One row of devices for each group of the notation with named axes."""
    sizes = {name: int(size) for name, size in re.findall(r"([^',=]+)'?=(\d+)", axes)}
    if device_ids is None:
        ids = np.arange(math.prod(sizes.values()))
    elif device_ids.startswith("["):
        ids = _iota(device_ids)
    else:
        ids = np.array(_integers(device_ids))
    # An axis of which only a part takes part stands as three: before, the part, behind.
    wanted = {
        name: (int(before or 1), int(part or sizes[name]))
        for name, before, part in re.findall(r"([^',:]+)'?(?::\((\d+)\)(\d+))?", over)
        if name in sizes
    }
    shape: list[int] = []
    taking_part = []
    for name, size in sizes.items():
        before, part = wanted.get(name, (1, 1))
        taking_part.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    rows = np.moveaxis(ids.reshape(shape), taking_part, range(-len(taking_part), 0))
    return rows.reshape(-1, math.prod(part for _, part in wanted.values()))


def _iota(text: str) -> np.ndarray:
    """[4,2]T(1,0): 0, 1, 2 ... in this shape, transposed, flat."""
    shape, _, axes = text.partition("T")
    sizes = _integers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_integers(axes) if axes else None).ravel()


def _computation(name: str, lines: Iterator[str]) -> Computation:
    instructions, root = {}, ""
    for line in lines:
        found = _INSTRUCTION.match(line)
        if not found:
            raise ValueError(f"a line of {name} is not an HLO instruction: {line[:80]!r}")
        instruction = _instruction(found.group(2), found.group(3))
        instructions[instruction.name] = instruction
        root = instruction.name if found.group(1) else root
    if not root:
        raise ValueError(f"the computation {name} has no ROOT")
    return Computation(name, instructions, instructions[root])


def _instruction(name: str, text: str) -> Instruction:
    """Splits `shape opcode(operands), attributes`."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shapes = tuple(
        ArrayShape(dtype, _integers(dims), layout)
        for dtype, dims, layout in _ARRAY.findall(text[:end])
    )
    opcode, _, rest = text[end:].lstrip().partition("(")
    closing = _closing("(" + rest) - 1
    argument = rest[: closing - 1]
    operands = tuple(_NAME.findall(argument))
    return Instruction(name, opcode, shapes, operands, argument, rest[closing:].removeprefix(", "))


def _closing(text: str) -> int:
    """The position behind the bracket that closes the first character."""
    depth = 0
    opening, closing = text[0], _BRACKETS[text[0]]
    for position, character in enumerate(text):
        depth += (character == opening) - (character == closing)
        if depth == 0:
            return position + 1
    raise ValueError(f"a bracket is never closed: {text[:80]!r}")


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _bytes(dtype: str, elements: int) -> int:
    if dtype in ("token", "opaque"):
        return 0
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return -(-elements * bits // 8)
