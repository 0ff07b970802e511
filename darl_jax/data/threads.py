"""Threads that nothing waits for when the program ends."""

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

from darl_jax.data.base import Batch
from darl_jax.data.batches import MakeChunk

# How long healthy threads are given for what they are at when they are closed.
_CLOSE_SECONDS = 2.0


class DaemonThreads:
    """A pool of threads that does not hold up the program's end.

    For the threads of a `futures.ThreadPoolExecutor` the interpreter waits before it exits, for
    ever where one of them reads from a disk that has stopped answering.
    """

    def __init__(self, count: int):
        """Starts `count` threads."""
        self._work: queue.SimpleQueue[tuple[futures.Future, Callable, tuple] | None] = (
            queue.SimpleQueue()
        )
        self._threads = [
            threading.Thread(target=_run, args=(self._work,), daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable, *arguments: Any) -> futures.Future:
        """Calls the function in one of the threads."""
        future: futures.Future = futures.Future()
        self._work.put((future, function, arguments))
        return future

    def close(self) -> None:
        """Ends the threads after what they are at; waits for that, but not long."""
        for _ in self._threads:
            self._work.put(None)
        end = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))


def _run(work: queue.SimpleQueue) -> None:
    while (item := work.get()) is not None:
        future, function, arguments = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)
        # A thread that waits must not keep the last chunk alive.
        del item, future, function, arguments


class ThreadChunks:
    """Chunks in their order, made ahead by threads of this process."""

    def __init__(
        self,
        make_chunk: MakeChunk,
        start: int,
        stop: int,
        *,
        threads: int,
        ahead: int,
        timeout_seconds: float,
    ):
        """Starts the threads; nothing is made before the first chunk is asked for.

        Args:
          make_chunk: makes chunk number `element`.
          start: the first chunk.
          stop: one past the last.
          threads: how many.
          ahead: chunks that are made, or being made, before they are asked for.
          timeout_seconds: how long a chunk that is waited for may take.
        """
        self._make_chunk = make_chunk
        self._submitted = self._wanted = start
        self._stop = stop
        self._ahead = ahead
        self._timeout_seconds = timeout_seconds
        self._threads = DaemonThreads(threads)
        self._made: collections.deque[futures.Future] = collections.deque()

    @contextlib.contextmanager
    def next_chunk(self) -> Iterator[Batch]:
        """The next chunk.

        Raises:
          TimeoutError: it was waited for too long; the message says what it reads.
        """
        element = self._wanted
        while self._submitted < min(self._stop, element + 1 + self._ahead):
            self._made.append(self._threads.submit(self._make_chunk, self._submitted))
            self._submitted += 1
        self._wanted += 1
        made = self._made.popleft()
        done, _ = futures.wait([made], self._timeout_seconds)
        if not done:
            raise TimeoutError(
                f"the data loader has made nothing for {self._timeout_seconds:g} s "
                f"(data.worker_timeout_seconds) of {self._make_chunk.describe(element)}; the disk "
                "or file system that holds them may have stopped answering. With "
                "data.num_workers above 0 it would have been tried a second time"
            )
        yield made.result()

    def close(self) -> None:
        """Ends the threads; one that is stuck is left behind."""
        for future in self._made:
            future.cancel()
        self._made.clear()
        self._threads.close()
