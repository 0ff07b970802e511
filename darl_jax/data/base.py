"""Contract between the kinds of data and the pipeline, which knows none of them."""

import abc
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

if TYPE_CHECKING:
    import jax

# One example: name -> shape and dtype, without the batch dimension. A string, because data workers
# start without JAX.
Features = Mapping[str, "jax.ShapeDtypeStruct"]

# Rows of a batch. The keys of the features, and for each row
#   index     int64, the record's number in its split, -1 for padding
#   mask      bool, False for rows that do not count: padding, and in evaluation bad records
#   replaced  bool, another record stands for this one, which could not be decoded
Batch = dict[str, np.ndarray]


@runtime_checkable
class Split(Protocol):
    """One split of a dataset, as examples; it can be pickled to a worker process.

    Attributes:
      dataset: the dataset's name or folder, for messages.
      split: the split as the config writes it.
      class_names: names of the classes by label; empty without labels.
      in_memory: examples are made from arrays in memory, which workers would only copy.
    """

    dataset: str
    split: str
    class_names: tuple[str, ...]
    in_memory: bool

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """A hash of the records and their order, the same wherever the files lie."""
        ...

    def train_examples(
        self, index: Int64[np.ndarray, " n"], epoch: Int64[np.ndarray, " n"], seed: int
    ) -> Batch:
        """Features and optionally `replaced`, augmented: a pure function of the arguments."""
        ...

    def eval_examples(self, index: Int64[np.ndarray, " n"]) -> Batch:
        """Features and optionally `mask`, False where a record cannot be decoded."""
        ...

    def labels(self, index: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Class numbers of records without making the examples; -1 for none."""
        ...

    def describe(self, index: Int64[np.ndarray, " n"]) -> str:
        """Names the records and their files, for messages."""
        ...


class Integers(NamedTuple):
    """A feature whose values are integers from 0 to levels - 1, with the channels last."""

    feature: str
    levels: int


class Splits(NamedTuple):
    """The opened splits of a config: records to learn from, and records held out."""

    train: Split
    validation: Split


@dataclasses.dataclass(frozen=True)
class DataConfig(abc.ABC):
    """Keys that every kind of data has."""

    name: str = ""  # kind of data, a key of `data.DATA`
    # Processes that make examples, in each process of the run, but no more than the cores it may
    # use; 0 makes them in threads of the program itself, as data in memory does.
    num_workers: int = 8
    worker_timeout_seconds: float = 300.0  # time limit for a batch that is waited for

    def __post_init__(self) -> None:
        self.check(self.num_workers >= 0, "num_workers", "0 or more")
        self.check(self.worker_timeout_seconds > 0, "worker_timeout_seconds", "positive")

    def check(self, valid: bool, key: str, rule: str) -> None:
        """Raises ValueError with the key's value and the rule, unless it is valid."""
        if not valid:
            raise ValueError(f"data.{key} is {getattr(self, key)!r}; it must be {rule}")

    @property
    def integers(self) -> Integers | None:
        """The feature that models of integers read; None where there is none."""
        return None

    @property
    @abc.abstractmethod
    def features(self) -> Features:
        """Shapes and dtypes of one example."""

    @abc.abstractmethod
    def open(self) -> Splits:
        """Opens both splits.

        Raises:
          ValueError: a key names something that does not exist; the message names the key.
        """


class Subset:
    """Chosen records of a split, in a given order; itself a split."""

    def __init__(self, whole: Split, chosen: Int64[np.ndarray, " record"]):
        self.whole, self.chosen = whole, chosen
        self.dataset, self.split = whole.dataset, whole.split
        self.class_names, self.in_memory = whole.class_names, whole.in_memory

    def __len__(self) -> int:
        return len(self.chosen)

    def fingerprint(self) -> str:
        """A hash of the records and their order."""
        return fingerprint_of(self.whole.fingerprint(), self.chosen.tobytes())

    def train_examples(
        self, index: Int64[np.ndarray, " n"], epoch: Int64[np.ndarray, " n"], seed: int
    ) -> Batch:
        """Augmented examples, with the random numbers that the whole split gives the records."""
        return self.whole.train_examples(self.chosen[index], epoch, seed)

    def eval_examples(self, index: Int64[np.ndarray, " n"]) -> Batch:
        """Examples of records without augmentation."""
        return self.whole.eval_examples(self.chosen[index])

    def labels(self, index: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Class numbers of records; -1 for none."""
        return self.whole.labels(self.chosen[index])

    def describe(self, index: Int64[np.ndarray, " n"]) -> str:
        """Names the records by their numbers in the whole split."""
        return self.whole.describe(self.chosen[index])


def some_records(split: Split, number: int) -> Split:
    """`number` records spread over a split in its order, the same in every run; or all of it.

    They are the first of a fixed permutation, so that fewer are a part of more.
    """
    if len(split) <= number:
        return split
    return Subset(split, np.sort(np.random.default_rng(0).permutation(len(split))[:number]))


def fingerprint_of(*parts: str | bytes) -> str:
    """16 hexadecimal digits that depend on each part and on its length."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()[:16]
