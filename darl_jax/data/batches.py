"""Chunks of batches as pure functions of their number: rows -> records -> examples."""

import dataclasses

import numpy as np
from jaxtyping import Int64

from darl_jax.data import order
from darl_jax.data.base import Batch, Split


@dataclasses.dataclass(frozen=True)
class BatchRows:
    """Parts a stream of rows into batches, and this process's part of a batch into chunks."""

    batch_size: int  # of all processes together, among which it must divide
    process_index: int
    process_count: int
    max_chunk: int  # rows

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size is {self.batch_size}; it must be a positive multiple of the "
                f"{self.process_count} processes"
            )

    @property
    def local_size(self) -> int:
        """Rows of this process's part of a batch."""
        return self.batch_size // self.process_count

    @property
    def chunks(self) -> int:
        """Chunks of this process's part of a batch."""
        return -(-self.local_size // self.max_chunk)

    def of_chunk(self, chunk: int) -> Int64[np.ndarray, " n"]:
        """Rows of the stream in a chunk, counted from the first batch's first."""
        step, part = divmod(chunk, self.chunks)
        start = step * self.batch_size + self.process_index * self.local_size
        low = part * self.local_size // self.chunks
        high = (part + 1) * self.local_size // self.chunks
        return np.arange(start + low, start + high, dtype=np.int64)


def rows_to_records(
    rows: Int64[np.ndarray, " n"], length: int, seed: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(epoch, record number) of rows of the endless training stream over `length` records."""
    epoch, position = np.divmod(rows, length)
    return epoch, order.permute(position, length, seed, epoch)


@dataclasses.dataclass(frozen=True)
class TrainChunks:
    """Chunks of the endless training stream: epoch after epoch, each in an order of its own."""

    split: Split
    rows: BatchRows
    seed: int

    def __call__(self, chunk: int) -> Batch:
        """Makes a chunk."""
        epoch, index = rows_to_records(self.rows.of_chunk(chunk), len(self.split), self.seed)
        ones = np.ones(len(index), bool)
        examples = self.split.train_examples(index, epoch, self.seed)
        return {"replaced": ~ones} | examples | {"index": index, "mask": ones}

    def records(self, chunk: int) -> Int64[np.ndarray, " n"]:
        """Record numbers of a chunk."""
        return rows_to_records(self.rows.of_chunk(chunk), len(self.split), self.seed)[1]


@dataclasses.dataclass(frozen=True)
class EvalChunks:
    """Chunks of one pass over a split in its own order, padded to whole batches."""

    split: Split
    rows: BatchRows
    empty: Batch  # the features, with no rows

    def __call__(self, chunk: int) -> Batch:
        """Makes a chunk."""
        index = self.records(chunk)
        mask = np.ones(len(index), bool)
        examples = {"mask": mask} | (self.split.eval_examples(index) if len(index) else self.empty)
        examples |= {"index": index, "replaced": ~examples["mask"]}
        padding = len(self.rows.of_chunk(chunk)) - len(index)
        if not padding:
            return examples
        padded = {
            name: np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
            for name, x in examples.items()
        }
        padded["index"][len(index) :] = -1
        return padded

    def records(self, chunk: int) -> Int64[np.ndarray, " n"]:
        """Record numbers of a chunk, without padding."""
        rows = self.rows.of_chunk(chunk)
        return rows[rows < len(self.split)]


# Pure functions of a chunk's number, pickled to the workers.
MakeChunk = TrainChunks | EvalChunks
