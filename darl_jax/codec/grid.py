"""Originals of any size as items of a model's size: tiles of a picture, pieces of a sequence."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int32

from darl_jax.codec.stream import Layout, Values


@dataclasses.dataclass(frozen=True)
class Grid:
    """Cut of an array [*size, channel] into items of a shape, in row-major order.

    The last items of an axis may reach over its end. What is there repeats the last of the
    original, and is not coded.
    """

    size: tuple[int, ...]
    shape: tuple[int, ...]  # of an item, with the channels

    def __post_init__(self) -> None:
        assert len(self.size) == len(self.shape) - 1

    def __len__(self) -> int:
        return math.prod(self._counts)

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(-(-size // side) for size, side in zip(self.size, self.shape, strict=False))

    def _places(self) -> Iterator[tuple[int, ...]]:
        """First index of each item along each axis."""
        for tile in itertools.product(*map(range, self._counts)):
            yield tuple(at * side for at, side in zip(tile, self.shape, strict=False))

    def layout(self) -> Layout:
        """The positions that hold the original."""
        positions = math.prod(self.shape)
        coded = np.zeros((len(self), *self.shape), bool)
        twin = np.zeros((len(self), *self.shape), np.int64)
        flat = np.arange(positions).reshape(self.shape)
        for item, place in enumerate(self._places()):
            lengths = self._lengths(place)
            coded[item][_box(lengths)] = True
            clamped = [
                np.minimum(np.arange(side), length - 1)
                for side, length in zip(self.shape, lengths, strict=False)
            ]
            twin[item] = flat[np.ix_(*clamped, np.arange(self.shape[-1]))]
        return Layout(coded.reshape(-1, positions), twin.reshape(-1, positions))

    def cut(self, array: Int32[np.ndarray, "..."]) -> Values:
        """The items of an array [*size, channel]."""
        items = np.zeros((len(self), *self.shape), np.int32)
        for item, place in enumerate(self._places()):
            lengths = self._lengths(place)
            here = tuple(slice(at, at + n) for at, n in zip(place, lengths, strict=True))
            items[item][_box(lengths)] = array[here]
        return items.reshape(len(self), math.prod(self.shape))

    def join(self, items: Values) -> Int32[np.ndarray, "..."]:
        """The array [*size, channel] of its items; the inverse of `cut`."""
        array = np.zeros((*self.size, self.shape[-1]), np.int32)
        for item, place in zip(items, self._places(), strict=True):
            lengths = self._lengths(place)
            here = tuple(slice(at, at + n) for at, n in zip(place, lengths, strict=True))
            array[here] = item.reshape(self.shape)[_box(lengths)]
        return array

    def _lengths(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """Extent of the original in the item at a place."""
        return tuple(
            min(side, size - at)
            for at, size, side in zip(place, self.size, self.shape, strict=False)
        )


def _box(lengths: tuple[int, ...]) -> tuple[slice, ...]:
    """Index of the first places along each axis."""
    return tuple(slice(length) for length in lengths)
