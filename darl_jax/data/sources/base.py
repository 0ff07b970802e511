"""Sources of records: random access by number, and names for messages about bad records."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int64, UInt8


class Record(NamedTuple):
    """One example as it is stored."""

    image: bytes | UInt8[np.ndarray, "height width channel"]  # an encoded file, or pixels
    label: int  # -1 where the dataset has none
    name: str  # for messages: a file name, a path, a shard


class BadRecordError(ValueError):
    """A record that cannot be read or decoded; the message names it.

    Attributes:
      index: the record's number in its split.
    """

    def __init__(
        self, dataset: str, split: str, index: int, name: str, reason: str, advice: str = ""
    ):
        super().__init__(dataset, split, index, name, reason, advice)
        self.index = index

    def __str__(self) -> str:
        dataset, split, index, name, reason, advice = self.args
        return (
            f"{dataset}, split '{split}', record {index} ({name}) cannot be decoded: {reason}"
            f"{'; ' if advice else ''}{advice}"
        )

    def advising(self, advice: str) -> "BadRecordError":
        """The same error with advice."""
        dataset, split, index, name, reason, _ = self.args
        return BadRecordError(dataset, split, index, name, reason, advice)


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
        """A hash of names and numbers of the records in their order, wherever the files lie."""
        ...


def slice_split(split: str, lengths: dict[str, int], key: str) -> Int64[np.ndarray, " n"]:
    """Record numbers of a split in TFDS's syntax, such as "train[:90%]", of one base split.

    Args:
      split: as the config has it.
      lengths: records of each base split.
      key: of the config, for the message.

    Raises:
      ValueError: the split is malformed, unknown, outside the records or empty.
    """
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[length], num_bytes=0)
        for name, length in lengths.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        index = np.concatenate(
            [
                np.arange(part.from_ or 0, lengths[part.splitname] if part.to is None else part.to)
                for part in parts
            ]
        )
        if not len(index):
            raise ValueError("It holds no records.")
    except (ValueError, KeyError, AssertionError) as error:
        there = ", ".join(f"{name} ({length} records)" for name, length in lengths.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"data.{key}='{split}' cannot be read: {reason} What is there: {there}"
        ) from error
    return index.astype(np.int64)


def base_split(split: str) -> str:
    """The name before the first slice: "train" of "train[:90%]+train[95%:]"."""
    return re.split(r"[\[+]", split, maxsplit=1)[0].strip()


def as_names(names: Iterable[str], limit: int = 20) -> str:
    """The first names of a list, for a message."""
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
