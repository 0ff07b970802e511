"""Batches made ahead of time, on threads here or on worker processes."""

import sys
from multiprocessing import util
from types import TracebackType

import numpy as np

from darl_jax.data.base import Batch
from darl_jax.data.batches import BatchRows, MakeChunk
from darl_jax.data.threads import ThreadChunks
from darl_jax.data.workers import WorkerChunks

# In this process: threads that decode beside the training step, and batches that they are ahead.
_THREADS = 2
_BATCHES_AHEAD = 2


class Batches:
    """An iterator over batches that can be closed; also a context manager.

    Closing, or losing the last reference, ends the threads and worker processes.
    """

    def __init__(
        self,
        make_chunk: MakeChunk,
        layout: BatchRows,
        *,
        start_step: int,
        num_steps: int | None,
        num_workers: int,
        row_bytes: int,
        timeout_seconds: float,
    ):
        """Nothing is read and no worker started before the first batch is asked for.

        Args:
          make_chunk: pure function of the chunk's number; pickled to the workers.
          layout: what the numbers mean.
          start_step: the first batch.
          num_steps: how many batches, None for no end.
          num_workers: processes; 0 for threads here.
          row_bytes: size of one row's pixels.
          timeout_seconds: how long a chunk that is waited for may take.

        Raises:
          ValueError: the machine has too little shared memory for the workers' chunks.
        """
        self._layout = layout
        start = start_step * layout.chunks
        stop = sys.maxsize if num_steps is None else start + num_steps * layout.chunks
        self._next, self._stop = start, stop
        self._chunks: WorkerChunks | ThreadChunks
        if num_workers:
            self._chunks = WorkerChunks(
                make_chunk,
                start,
                stop,
                num_workers=num_workers,
                chunk_bytes=layout.max_chunk * row_bytes,
                timeout_seconds=timeout_seconds,
            )
        else:
            self._chunks = ThreadChunks(
                make_chunk,
                start,
                stop,
                threads=_THREADS,
                ahead=_BATCHES_AHEAD * layout.chunks,
                timeout_seconds=timeout_seconds,
            )
        # Unlike weakref.finalize this runs before multiprocessing waits for its processes.
        self._finalizer = util.Finalize(self, self._chunks.close, exitpriority=1)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._next >= self._stop:
            self.close()
            raise StopIteration
        if not self._finalizer.still_active():
            raise ValueError("these batches are closed")
        try:
            return self._assemble()
        except BaseException:
            self.close()
            raise

    def _assemble(self) -> Batch:
        size = self._layout.local_size
        batch: Batch = {}
        filled = 0
        while filled < size:
            with self._chunks.next_chunk() as chunk:
                if not batch:
                    # Copied even where one chunk is all: a worker takes its memory back, and a
                    # device may keep looking at the host's array.
                    batch = {
                        key: np.empty((size, *value.shape[1:]), value.dtype)
                        for key, value in chunk.items()
                    }
                count = len(chunk["index"])
                for key, value in chunk.items():
                    batch[key][filled : filled + count] = value
            filled += count
            self._next += 1
        return batch

    def close(self) -> None:
        """Ends threads and workers; safe to call twice."""
        self._finalizer()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
