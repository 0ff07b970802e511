"""What a batch holds, and how it is put together from chunks."""

import dataclasses
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

# A batch, or some rows of one:
#   image     uint8 (batch, height, width, channel)
#   label     int32 (batch,), class number, -1 for none
#   index     int64 (batch,), the record's number in its split, -1 for padding
#   mask      bool (batch,), False for what is not to be counted: padding, and in evaluation
#             records that cannot be decoded
#   replaced  bool (batch,), the record could not be decoded
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows of the stream become batches, and batches chunks.

    Attributes:
      batch_size: rows of the global batch.
      process_index: which part of it is this process's.
      process_count: of how many parts.
      max_chunk: rows of a chunk at most.

    Raises:
      ValueError: the batch does not divide among the processes.
    """

    batch_size: int
    process_index: int
    process_count: int
    max_chunk: int

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
        """How many chunks make up this process's part of a batch."""
        return -(-self.local_size // self.max_chunk)

    def rows(self, element: int) -> Int64[np.ndarray, " n"]:
        """The rows of the stream in chunk `element`, counted from the first batch's first."""
        step, part = divmod(element, self.chunks)
        start = step * self.batch_size + self.process_index * self.local_size
        low = part * self.local_size // self.chunks
        high = (part + 1) * self.local_size // self.chunks
        return np.arange(start + low, start + high, dtype=np.int64)


@runtime_checkable
class MakeChunk(Protocol):
    """Makes any chunk of a stream: a pure function of its number, pickled to the workers."""

    def __call__(self, element: int) -> Batch:
        """Chunk number `element`."""
        ...

    def describe(self, element: int) -> str:
        """Which records chunk `element` holds and where they are read from, for messages."""
        ...


@runtime_checkable
class Chunks(Protocol):
    """Chunks in their order."""

    def next_chunk(self) -> AbstractContextManager[Batch]:
        """The next chunk; its arrays may be overwritten after the `with` block."""
        ...

    def close(self) -> None:
        """Ends what makes them; safe to call twice."""
        ...
