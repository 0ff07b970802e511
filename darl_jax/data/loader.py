"""Batches made ahead: by worker processes, which Grain runs, or by a thread of this process.

What Grain 0.2.18 leaves out is here: it waits for ever for a worker that is stuck, does not name
one that died, and its workers outlive a killed trainer. So each worker notes in shared memory
which chunk it makes and ends with its parent, and `next` has a time limit. A lost worker ends the
run: chunks are pure functions of their numbers, so a restart goes on with the very same records.
"""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import connection, resource_tracker, shared_memory, util
from typing import NamedTuple

import numpy as np
from absl import flags, logging

from darl_jax.data.base import Batch
from darl_jax.data.batches import BatchRows, MakeChunk

# Chunks of a worker that lie in shared memory at once: in its hand, in its queue, in Grain's
# thread for it (one in hand, one buffered), and one that is read.
CHUNKS_IN_FLIGHT = 5
# Smaller arrays travel in the queue's messages.
_SHARED_FROM_BYTES = 2**14
_BATCHES_AHEAD = 2
# The imports of a worker may come over a slow network.
_START_SECONDS = 300.0
_CLOSE_SECONDS = 3.0
_POLL_SECONDS = 0.5
_NOTE = struct.Struct("qq")  # Process id, and the chunk that is made.


class Batches:
    """An iterator over batches; closing it, or losing it, ends the worker processes."""

    def __init__(
        self,
        make_chunk: MakeChunk,
        rows: BatchRows,
        *,
        start_step: int,
        num_steps: int | None,
        num_workers: int,
        timeout_seconds: float,
    ):
        """Starts the workers, or with none a thread, which makes `num_steps` batches (None: all).

        A chunk that is waited for longer than the time limit is an error.
        """
        start = start_step * rows.chunks
        stop = sys.maxsize if num_steps is None else start + num_steps * rows.chunks
        self._feed = _Feed(make_chunk, rows, range(start, stop), min(num_workers, stop - start))
        self._timeout_seconds = timeout_seconds
        # Unlike weakref.finalize this runs before multiprocessing waits for its processes.
        self._finalizer = util.Finalize(self, self._feed.close, exitpriority=10)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        """Next batch, or an error of `make_chunk`, TimeoutError, ChildProcessError."""
        if not self._finalizer.still_active():
            raise ValueError("these batches are closed")
        try:
            batch = self._feed.next(self._timeout_seconds)
        except BaseException:
            self.close()
            raise
        if batch is None:
            self.close()
            raise StopIteration
        return batch

    def close(self) -> None:
        """Ends threads and workers; safe to call twice."""
        self._finalizer()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Feed:
    """A thread that puts chunks together to batches, a few ahead of the training step."""

    def __init__(self, make_chunk: MakeChunk, rows: BatchRows, numbers: range, num_workers: int):
        self._make_chunk, self._rows = make_chunk, rows
        self._numbers, self._num_workers = numbers, num_workers
        self._received = 0  # Chunks.
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._notes: shared_memory.SharedMemory | None = None
        if num_workers:
            # A worker that is killed leaves shared memory; the tracker removes it, and may do so
            # without a warning. It starts before the thread blocks signals, since it unblocks them.
            sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
            resource_tracker.ensure_running()
            size = num_workers * _NOTE.size
            self._notes = shared_memory.SharedMemory(create=True, size=size)
        self._thread.start()  # which starts the workers

    def next(self, timeout_seconds: float) -> Batch | None:
        """Next batch, None at the end; raises the thread's error, or TimeoutError."""
        progress, since = None, 0.0
        while True:
            if progress != (progress := (self._received, self._starting())):
                since = time.monotonic()
            limit = max(timeout_seconds, _START_SECONDS) if progress[1] else timeout_seconds
            try:
                item = self._ready.get(timeout=min(limit, _POLL_SECONDS))
            except queue.Empty:
                if time.monotonic() - since < limit:
                    continue
                message = self._stuck(limit)
                self._kill_workers()
                raise TimeoutError(message) from None
            if isinstance(item, BaseException):
                raise item
            return item

    def close(self) -> None:
        """Ends the thread and the workers; leaves behind a thread that is stuck."""
        self._closed.set()
        self._thread.join(_CLOSE_SECONDS * (3 if self._num_workers else 1))

    def _run(self) -> None:
        # Workers inherit the mask from their start on: Ctrl-C and a scheduler's SIGTERM go to the
        # whole process group, and the trainer may still want the batch that a worker is making.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            with self._chunks() as chunks:
                steps = range(0, len(self._numbers), self._rows.chunks)
                if all(self._put(self._assemble(chunks)) for _ in steps):
                    self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        """Waits until there is room for the item; False where the feed is closed."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=_POLL_SECONDS)
                return True
        return False

    @contextlib.contextmanager
    def _chunks(self) -> Iterator[Iterator["Batch | _Failure"]]:
        if self._notes is None:
            yield map(self._make_chunk, self._numbers)
            return
        import grain  # Imports JAX and Orbax, which takes seconds: not where no worker is wanted.

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags.
        name, start, stop = self._notes.name, self._numbers.start, self._numbers.stop
        dataset = (
            grain.MapDataset.range(start, stop)
            .map(_NotedChunks(self._make_chunk, name, start, self._num_workers))
            .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        )
        options = grain.experimental.DatasetOptions(min_shm_size=_SHARED_FROM_BYTES)
        chunks = iter(
            grain.experimental.WithOptionsIterDataset(dataset, options).mp_prefetch(
                grain.MultiprocessingOptions(self._num_workers), worker_init_fn=_WorkerStart(name)
            )
        )
        try:
            yield chunks
        finally:
            # Grain waits 25 s for each worker that is stuck, but not for one that is dead.
            killer = threading.Timer(_CLOSE_SECONDS, self._kill_workers)
            killer.daemon = True
            killer.start()
            chunks.close()
            killer.cancel()
            # Their process ids may be others' from now on.
            notes, self._notes = self._notes, None
            notes.unlink()

    def _assemble(self, chunks: Iterator["Batch | _Failure"]) -> Batch:
        size, filled = self._rows.local_size, 0
        batch: Batch = {}
        while filled < size:
            chunk = self._next_chunk(chunks)
            if not batch:
                # Copied even where one chunk is all: Grain takes its memory back.
                batch = {
                    key: np.empty((size, *value.shape[1:]), value.dtype)
                    for key, value in chunk.items()
                }
            count = len(chunk["index"])
            for key, value in chunk.items():
                batch[key][filled : filled + count] = value
            filled += count
        return batch

    def _next_chunk(self, chunks: Iterator["Batch | _Failure"]) -> Batch:
        try:
            chunk = next(chunks)
        except RuntimeError as error:
            if self._notes is None or self._closed.is_set():
                raise
            message = self._lost(error)
            self._kill_workers()
            raise ChildProcessError(message) from error
        if isinstance(chunk, _Failure):
            raise chunk.error
        self._received += 1
        return chunk

    def _worker_notes(self) -> list[tuple[int, int]]:
        """(process id, chunk) of each worker, 0 before it has started."""
        if self._notes is None or self._notes.buf is None:
            return []
        return list(_NOTE.iter_unpack(self._notes.buf[: self._num_workers * _NOTE.size]))

    def _describe(self, chunk: int) -> str:
        return self._make_chunk.split.describe(self._make_chunk.records(chunk))

    def _starting(self) -> bool:
        """True while a worker has not begun its first chunk."""
        return any(chunk < 0 or not pid for pid, chunk in self._worker_notes())

    def _stuck(self, seconds: float) -> str:
        wanted = self._describe(self._numbers[self._received])
        said = (
            f"has made nothing for {seconds:g} s (data.worker_timeout_seconds) of {wanted}; the "
            "disk or file system that holds them may have stopped answering"
        )
        if self._notes is None:
            return f"the data loader {said}"
        worker = self._received % self._num_workers
        pid, _ = self._worker_notes()[worker]
        return f"data worker {worker + 1} of {self._num_workers} (pid {pid}) {said}"

    def _lost(self, error: RuntimeError) -> str:
        for worker, (pid, chunk) in enumerate(self._worker_notes()):
            if pid and not _is_alive(pid):
                return (
                    f"data worker {worker + 1} of {self._num_workers} (pid {pid}) died while it "
                    f"made {self._describe(chunk)}; memory may have run out: "
                    "data.num_workers sets the number of workers"
                )
        return f"a data worker died while it started: {error}"

    def _kill_workers(self) -> None:
        for pid, _ in self._worker_notes():
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- in the worker -------------------------------------------------------------------------------


class _Failure(NamedTuple):
    """Travels in place of a chunk that could not be made."""

    error: Exception


class _WorkerStart(NamedTuple):
    """Runs first in a worker: leaves accelerators alone, and does not outlive the trainer."""

    notes: str

    def __call__(self, worker: int, count: int) -> None:
        del count
        os.environ["JAX_PLATFORMS"] = "cpu"
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_platforms", "cpu")
        logging.set_verbosity(logging.WARNING)
        threading.Thread(target=_die_with_parent, daemon=True).start()
        _note(shared_memory.SharedMemory(self.notes), worker, -1)


def _note(notes: shared_memory.SharedMemory, worker: int, chunk: int) -> None:
    assert notes.buf is not None
    _NOTE.pack_into(notes.buf, worker * _NOTE.size, os.getpid(), chunk)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class _NotedChunks:
    """Makes chunks, and notes before each which one it is."""

    def __init__(self, make_chunk: MakeChunk, notes: str, first: int, num_workers: int):
        self._make_chunk, self._name = make_chunk, notes
        self._first, self._num_workers = first, num_workers
        self._notes: shared_memory.SharedMemory | None = None

    def __call__(self, chunk: int) -> Batch | _Failure:
        if self._notes is None:
            self._notes = shared_memory.SharedMemory(self._name)
        _note(self._notes, (chunk - self._first) % self._num_workers, chunk)
        try:
            return self._make_chunk(chunk)
        except Exception as error:
            return _Failure(_picklable(error))


def _picklable(error: Exception) -> Exception:
    """The error with its traceback as a note, or its text where it cannot be pickled."""
    error.add_note(f"In a data worker:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
