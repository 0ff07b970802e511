"""Sources of records: random access by number, and names for messages about bad records."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int64, UInt8


class Record(NamedTuple):
    """One example as it is stored.

    Attributes:
      image: the encoded file's bytes, or pixels of (height, width, channel).
      label: class number, -1 where the dataset has none.
      name: what finds the record again, for messages: a file name, a path, a shard.
    """

    image: bytes | UInt8[np.ndarray, "height width channel"]
    label: int
    name: str


class BadRecordError(ValueError):
    """A record that cannot be read or decoded; the message names it.

    Attributes:
      dataset: the dataset's name or folder.
      split: the split as the config writes it.
      index: the record's number in this split.
      name: the record's file name.
      reason: why it cannot be decoded.
      advice: what to do about it; empty where nothing need be done.
    """

    def __init__(
        self, dataset: str, split: str, index: int, name: str, reason: str, advice: str = ""
    ):
        super().__init__(dataset, split, index, name, reason, advice)
        self.dataset, self.split, self.index = dataset, split, index
        self.name, self.reason, self.advice = name, reason, advice

    def __str__(self) -> str:
        return (
            f"{self.dataset}, split '{self.split}', record {self.index} ({self.name}) cannot be "
            f"decoded: {self.reason}{'; ' if self.advice else ''}{self.advice}"
        )

    def advising(self, advice: str) -> "BadRecordError":
        """The same error with advice."""
        return BadRecordError(self.dataset, self.split, self.index, self.name, self.reason, advice)


@runtime_checkable
class Source(Protocol):
    """A split of a dataset, by index; it can be pickled to a worker process.

    Attributes:
      dataset: the dataset's name or the folder, for messages.
      split: the split as the config wrote it.
      class_names: names of the classes by label; empty without labels.
    """

    dataset: str
    split: str
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, index: Sequence[int]) -> list[Record]:
        """Reads records, in the order of `index`. Raises BadRecordError."""
        ...

    def files(self, index: Sequence[int]) -> list[str]:
        """Files that these records are read from; empty where they come with a package."""
        ...

    def fingerprint(self) -> str:
        """A hash of the records and their order, the same wherever the files lie.

        It is made of names and numbers; the images themselves are not read.
        """
        ...


def slice_split(split: str, lengths: dict[str, int], key: str) -> Int64[np.ndarray, " n"]:
    """The record numbers that TFDS's split syntax means, for a source that is not TFDS.

    Args:
      split: "train", "train[:90%]", "train[10:50]", or a sum of such joined by "+"; all of one
        base split.
      lengths: how many records each base split has.
      key: the config key that the split comes from, for the message.

    Raises:
      ValueError: the split is malformed, unknown, outside the records or empty.
    """
    parts = split_ranges(split, lengths, key)
    return np.concatenate([np.arange(part.start, part.stop, dtype=np.int64) for part in parts])


def split_ranges(split: str, lengths: dict[str, int], key: str) -> list[range]:
    """As `slice_split`, one range for each part of the split."""
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0)
        for name, length in lengths.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(_bad_split(key, split, lengths, error)) from error
    ranges = [
        range(part.from_ or 0, lengths[part.splitname] if part.to is None else part.to)
        for part in parts
    ]
    if not any(ranges):
        raise ValueError(_bad_split(key, split, lengths, ValueError("It holds no records.")))
    return ranges


def base_split(split: str) -> str:
    """The name before the first slice: "train" of "train[:90%]+train[95%:]"."""
    return re.split(r"[\[+]", split, maxsplit=1)[0].strip()


def _bad_split(key: str, split: str, lengths: dict[str, int], error: Exception) -> str:
    there = ", ".join(f"{name} ({length} records)" for name, length in lengths.items())
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"data.{key}='{split}' cannot be read: {reason} What is there: {there}"


def as_names(names: Iterable[str], limit: int = 20) -> str:
    """The first names of a list, for a message."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
