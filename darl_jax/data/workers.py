"""Chunks made by worker processes, and what happens to a worker that is stuck or dies."""

import collections
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from darl_jax.data.base import Batch
from darl_jax.data.batches import MakeChunk

# Chunks of one worker: one that is read here, and the others made or being made.
_SLOTS = 4
# What a worker imports and opens before its first chunk may come over a slow network.
_START_SECONDS = 300.0
# How long killed processes are waited for.
_KILL_SECONDS = 5.0
_SHARED_MEMORY = "/dev/shm"

# A new interpreter: threads and accelerators of this one do not survive a fork.
_spawn = multiprocessing.get_context("spawn")


class _Made(NamedTuple):
    """A chunk whose pixels lie in shared memory."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    others: Batch


class _WorkerLostError(Exception):
    """A worker that makes no more chunks; the message says since when or why."""


class WorkerChunks:
    """Chunks in their order, made ahead by worker processes that take turns.

    A worker that makes nothing for too long while its chunk is waited for is killed, and one that
    dies is mourned: another takes its place at the very same chunk. Chunks are pure functions of
    their numbers, so nothing is lost or comes twice. A chunk that takes a second worker is an
    error.
    """

    def __init__(
        self,
        make_chunk: MakeChunk,
        start: int,
        stop: int,
        *,
        num_workers: int,
        chunk_bytes: int,
        timeout_seconds: float,
    ):
        """No worker is started before the first chunk is asked for.

        Args:
          make_chunk: makes chunk number `element`; pickled to the workers.
          start: the first chunk.
          stop: one past the last.
          num_workers: how many processes.
          chunk_bytes: size of the largest chunk's pixels.
          timeout_seconds: how long a chunk that is waited for may take.

        Raises:
          ValueError: the machine has too little shared memory for the workers' chunks.
        """
        self._make_chunk = make_chunk
        self._start = self._wanted = start
        self._stop = stop
        self._count = min(num_workers, stop - start)
        self._chunk_bytes = chunk_bytes
        self._timeout_seconds = timeout_seconds
        pickled = np.frombuffer(pickle.dumps(make_chunk), np.uint8)
        _check_shared_memory(num_workers, self._count * _SLOTS * chunk_bytes + pickled.nbytes)
        # Once for all workers: a list of a million files is large.
        self._program = _spawn.RawArray("B", pickled.nbytes)
        np.frombuffer(self._program, np.uint8)[:] = pickled
        self._workers: list[_Worker] = []
        self._lost_at: dict[int, int] = {}

    @contextlib.contextmanager
    def next_chunk(self) -> Iterator[Batch]:
        """The next chunk; its pixels lie in memory that a worker takes back afterwards.

        Raises:
          TimeoutError: two workers in turn made nothing of it in time.
          ChildProcessError: two workers in turn died of it.
          Exception: what `make_chunk` raised.
        """
        if not self._workers:
            with _signals_held():
                for place in range(self._count):
                    self._workers.append(self._new_worker(self._start + place))
        element = self._wanted
        place = (element - self._start) % self._count
        while True:
            try:
                chunk = self._workers[place].receive(self._timeout_seconds)
                break
            except _WorkerLostError as lost:
                self._replace(place, element, lost)
        self._wanted += 1
        yield chunk
        self._workers[place].release()

    def close(self) -> None:
        """Kills the workers: they hold nothing that has to be put away."""
        _kill(self._workers)
        self._workers.clear()

    def _new_worker(self, element: int) -> "_Worker":
        elements = range(element, self._stop, self._count)
        return _Worker(self._program, self._chunk_bytes, elements)

    def _replace(self, place: int, element: int, lost: _WorkerLostError) -> None:
        worker = self._workers[place]
        _kill([worker])
        message = (
            f"data worker {place + 1} of {self._count} (pid {worker.process.pid}) {lost} and was "
            f"to read {self._make_chunk.describe(element)}"
        )
        if self._lost_at.get(place) == element:
            stuck = isinstance(lost.__cause__, TimeoutError)
            advice = (
                "the disk or file system that holds them may have stopped answering; "
                "data.worker_timeout_seconds sets how long a worker may take"
                if stuck
                else "memory may have run out; data.num_workers sets how many workers there are"
            )
            message = f"two workers in turn were lost at the same records: {message}; {advice}"
            raise (TimeoutError if stuck else ChildProcessError)(message) from lost
        self._lost_at[place] = element
        logging.warning("%s; another one takes its place at the same records", message)
        with _signals_held():
            self._workers[place] = self._new_worker(element)


class _Worker:
    """One process, what it is to make, and the memory where it puts the pixels."""

    def __init__(self, program: Any, chunk_bytes: int, elements: Sequence[int]):
        self._slots = [_spawn.RawArray("B", chunk_bytes) for _ in range(_SLOTS)]
        self._elements = iter(elements)
        self._asked: collections.deque[int] = collections.deque()
        self._ready = False
        self._connection, theirs = _spawn.Pipe()
        self.process = _spawn.Process(
            target=_work, args=(theirs, program, self._slots), name="data-worker", daemon=True
        )
        self.process.start()
        # Now the worker's end is the only one, and its death ends the connection.
        theirs.close()
        for slot in range(_SLOTS):
            self._ask(slot)

    def _ask(self, slot: int) -> None:
        element = next(self._elements, None)
        if element is not None:
            self._asked.append(slot)
            # A worker that is gone is found out where its chunk is waited for.
            with contextlib.suppress(OSError):
                self._connection.send((element, slot))

    def receive(self, timeout_seconds: float) -> Batch:
        """The next chunk. Raises _WorkerLostError, or what the worker raised."""
        if not self._ready:
            self._read(max(_START_SECONDS, timeout_seconds), "has not started after")
            self._ready = True
        made = self._read(timeout_seconds, "has made nothing for")
        pixels = np.frombuffer(self._slots[self._asked[0]], made.dtype, np.prod(made.shape))
        return {made.name: pixels.reshape(made.shape), **made.others}

    def _read(self, timeout_seconds: float, what: str) -> Any:
        try:
            if not self._connection.poll(timeout_seconds):
                raise TimeoutError(f"{what} {timeout_seconds:g} s")
            message = self._connection.recv()
        except TimeoutError as error:
            raise _WorkerLostError(str(error)) from error
        except (EOFError, OSError) as error:
            self.process.join(_KILL_SECONDS)
            raise _WorkerLostError(
                f"ended without an error of its own (exit code {self.process.exitcode})"
            ) from error
        if isinstance(message, BaseException):
            raise message
        return message

    def release(self) -> None:
        """The chunk that was received last has been read."""
        self._ask(self._asked.popleft())

    def kill(self) -> None:
        """Sends SIGKILL; the worker may be gone already."""
        self.process.kill()
        self._connection.close()


def _kill(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.kill()
    end = time.monotonic() + _KILL_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, end - time.monotonic()))


def _check_shared_memory(num_workers: int, needed: int) -> None:
    """Where it runs out a worker dies of SIGBUS and says nothing; containers often have 64 MB."""
    if not os.path.isdir(_SHARED_MEMORY):
        return
    state = os.statvfs(_SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    if needed > free:
        raise ValueError(
            f"data.num_workers={num_workers} needs {needed / 1e6:.0f} MB of shared memory, and "
            f"{_SHARED_MEMORY} has {free / 1e6:.0f} MB free: give the container more (docker run "
            "--shm-size=2g), or set fewer workers; 0 needs none"
        )


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


# --- in the worker -------------------------------------------------------------------------------


def _work(requests: connection.Connection, program: Any, slots: list[Any]) -> None:
    """Makes the chunks that are asked for until nobody asks any more."""
    _prepare_worker()
    try:
        make_chunk = pickle.loads(np.frombuffer(program, np.uint8).data)
        requests.send("ready")
        while True:
            element, slot = requests.recv()
            chunk = make_chunk(element)
            largest = max(chunk, key=lambda name: chunk[name].nbytes)
            pixels = chunk.pop(largest)
            np.frombuffer(slots[slot], pixels.dtype, pixels.size).reshape(pixels.shape)[:] = pixels
            requests.send(_Made(largest, pixels.shape, pixels.dtype, chunk))
    except EOFError:
        return
    except BaseException as error:
        requests.send(_as_sent(error))


def _as_sent(error: BaseException) -> BaseException:
    """The error with its traceback as a note, or its text where it cannot be pickled."""
    error.add_note(f"In a data worker:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _prepare_worker() -> None:
    """Runs first in a worker: it leaves accelerators alone and does not outlive its parent."""
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
