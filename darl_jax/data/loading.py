"""Chunks of a batch made ahead of time, on threads here or on Grain's worker processes."""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from multiprocessing import connection, resource_tracker
from types import TracebackType

import grain
import numpy as np
from absl import flags, logging
from jaxtyping import Int64

# In this process: threads that decode beside the training step, and batches that they are ahead.
_THREADS = 2
_BATCHES_AHEAD = 2
# In a worker: chunks that it is ahead.
_CHUNKS_AHEAD = 2
_SHARED_MEMORY = "/dev/shm"


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


class Batches:
    """An iterator over batches that can be closed; also a context manager.

    Closing, or losing the last reference, ends the threads and worker processes.
    """

    def __init__(
        self,
        make_chunk: Callable[[int], Batch],
        layout: Layout,
        *,
        start_step: int,
        num_steps: int | None,
        num_workers: int,
        row_bytes: int,
    ):
        """Nothing is read and no worker started before the first batch is asked for.

        Args:
          make_chunk: pure function of the chunk's number; pickled to the workers.
          layout: what the numbers mean.
          start_step: the first batch.
          num_steps: how many batches, None for no end.
          num_workers: processes; 0 for threads here.
          row_bytes: size of one row's pixels.

        Raises:
          ValueError: the machine has too little shared memory for the workers' chunks.
        """
        self._layout = layout
        start = start_step * layout.chunks
        stop = sys.maxsize if num_steps is None else start + num_steps * layout.chunks
        self._next, self._stop = start, stop
        self._start = start
        if num_workers:
            count = min(num_workers, stop - start)
            _check_shared_memory(num_workers, count, layout.max_chunk * row_bytes)
            self._iterators = [_worker(make_chunk, start + i, stop, count) for i in range(count)]
        else:
            self._iterators = [_threads(make_chunk, start, stop, layout.chunks)]
        self._in_workers = num_workers > 0
        self._ahead: collections.deque[Batch] = collections.deque()
        self._finalizer = weakref.finalize(self, _close, self._iterators)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._next >= self._stop:
            self.close()
            raise StopIteration
        if not self._finalizer.alive:
            raise ValueError("these batches are closed")
        try:
            if self._in_workers and self._next == self._start:
                self._ahead.extend(_first_chunks(self._iterators))
            return self._assemble()
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
                raise ChildProcessError(
                    "A data worker ended without an error of its own, as it does when memory runs "
                    f"out: {str(error).split('. ')[0]}; data.num_workers sets how many there are"
                ) from error
            raise

    def _assemble(self) -> Batch:
        size = self._layout.local_size
        batch: Batch = {}
        filled = 0
        while filled < size:
            chunk = self._chunk()
            if not batch:
                # Copied even where one chunk is all: a worker's arrays lie in shared memory that
                # goes with them, and a device may keep looking at the host's array.
                batch = {
                    key: np.empty((size, *value.shape[1:]), value.dtype)
                    for key, value in chunk.items()
                }
            count = len(chunk["index"])
            for key, value in chunk.items():
                batch[key][filled : filled + count] = value
            filled += count
        return batch

    def _chunk(self) -> Batch:
        place = (self._next - self._start) % len(self._iterators)
        self._next += 1
        return self._ahead.popleft() if self._ahead else next(self._iterators[place])

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


def _threads(
    make_chunk: Callable[[int], Batch], start: int, stop: int, chunks: int
) -> grain.DatasetIterator:
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD * chunks)
    return iter(grain.MapDataset.range(start, stop).map(make_chunk).to_iter_dataset(options))


def _worker(
    make_chunk: Callable[[int], Batch], start: int, stop: int, step: int
) -> grain.DatasetIterator:
    """Chunks start, start + step, ... from one process.

    One Grain pipeline for each process, taken in turn here: Grain's own interleaving loses the
    processes whose first element nobody has asked for yet, and then nothing ends them.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags, and a library has no main.
    dataset = grain.MapDataset.range(start, stop, step).map(make_chunk)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=_CHUNKS_AHEAD)
    return iter(dataset.mp_prefetch(options, worker_init_fn=_prepare_worker))


def _check_shared_memory(num_workers: int, count: int, chunk_bytes: int) -> None:
    """Where it runs out a worker dies of SIGBUS and says nothing; containers often have 64 MB."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    state = os.statvfs(_SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    needed = count * (2 * _CHUNKS_AHEAD + 2) * chunk_bytes
    if needed > free:
        raise ValueError(
            f"data.num_workers={num_workers} needs {needed / 1e6:.0f} MB of shared memory, and "
            f"{_SHARED_MEMORY} has {free / 1e6:.0f} MB free: give the container more (docker run "
            "--shm-size=2g), or set fewer workers; 0 needs none"
        )


def _first_chunks(iterators: Sequence[grain.DatasetIterator]) -> list[Batch]:
    """Starts all workers together and waits for the first chunk of each."""
    with _signals_held(), futures.ThreadPoolExecutor(len(iterators)) as pool:
        return list(pool.map(next, iterators))


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes started here never get SIGINT or SIGTERM; this one gets them afterwards.

    Ctrl-C goes to the whole process group, and a scheduler's SIGTERM may: what it means is the
    trainer's to decide, which may still want the batch that a worker is making. The mask is
    inherited, and so holds from a worker's first instruction on.
    """
    # Started first, for its start unblocks these very signals.
    resource_tracker.ensure_running()
    held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    """Runs first in a worker: it leaves accelerators alone and does not outlive its parent."""
    del worker_index, worker_count
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    logging.set_verbosity(logging.WARNING)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _close(iterators: list[grain.DatasetIterator]) -> None:
    # Together, for each may take as long as its worker's present chunk.
    with futures.ThreadPoolExecutor(len(iterators)) as pool:
        for _ in pool.map(lambda iterator: iterator.close(), iterators):
            pass
    # Grain's iterators close themselves again when they go, which at the interpreter's end is too
    # late: they go now.
    iterators.clear()
