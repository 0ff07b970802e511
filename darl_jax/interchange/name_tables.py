"""Tables of another project's array names, each of which is used in both directions.

An entry pairs flat names of names.py with those of the other project; '{i}' is the block's number.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from darl_jax.interchange.names import Shape, Tensors

_KINDS = ("weight", "bias")
_QKV = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Arrays of the same numbers: several of ours joined in one of theirs, or one of ours split.

    Both happen along the first axis; a split removes it.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    leading: int = 0  # axes of length 1 that theirs has in front

    def in_block(self, i: int) -> "Entry":
        """The entry of a block."""
        ours, theirs = (
            tuple(name.replace("{i}", str(i)) for name in names)
            for names in (self.ours, self.theirs)
        )
        return Entry(ours, theirs, self.leading)

    def shape(self, ours: Mapping[str, Shape]) -> Shape:
        """Shape of each of theirs."""
        rest = ours[self.ours[0]][1:]
        if len(self.theirs) > 1:
            return rest
        return (1,) * self.leading + (sum(ours[name][0] for name in self.ours), *rest)

    def to_theirs(self, ours: Mapping[str, np.ndarray]) -> Tensors:
        """Converts our arrays."""
        if len(self.theirs) > 1:
            return dict(zip(self.theirs, ours[self.ours[0]], strict=True))
        joined = np.concatenate([ours[name] for name in self.ours])
        return {self.theirs[0]: joined.reshape((1,) * self.leading + joined.shape)}

    def to_ours(self, theirs: Mapping[str, np.ndarray]) -> Tensors:
        """Converts their arrays."""
        if len(self.theirs) > 1:
            return {self.ours[0]: np.stack([theirs[name] for name in self.theirs])}
        joined = theirs[self.theirs[0]]
        parts = np.split(joined.reshape(joined.shape[self.leading :]), len(self.ours))
        return dict(zip(self.ours, parts, strict=True))


def layers(names: Mapping[str, str]) -> tuple[Entry, ...]:
    """Entries of the weights and biases of layers by their names."""
    return tuple(
        Entry((f"{ours}.{kind}",), (f"{theirs}.{kind}",))
        for ours, theirs in names.items()
        for kind in _KINDS
    )


def joined_qkv(theirs: str) -> tuple[Entry, ...]:
    """Entries of query, key and value in one matrix, and their biases in one vector."""
    return tuple(
        Entry(
            tuple(f"blocks.{{i}}.attention.{name}.{kind}" for name in _QKV), (f"{theirs}.{kind}",)
        )
        for kind in _KINDS
    )


def of_model(entries: Iterable[Entry], ours: Iterable[str], depth: int) -> list[Entry]:
    """Entries of the arrays that a model has, block by block."""
    there = set(ours)
    expanded: list[Entry] = []
    for entry in entries:
        per_block = "{i}" in entry.ours[0]
        expanded += [entry.in_block(i) for i in range(depth)] if per_block else [entry]
    return [entry for entry in expanded if there.issuperset(entry.ours)]
