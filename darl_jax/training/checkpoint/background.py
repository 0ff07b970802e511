"""A thread for what may hang, such as writing to a file system that is gone."""

import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """Runs one call after another in a thread that can be left behind.

    The end of the program waits neither for it nor for the threads that its calls start, except
    those of `concurrent.futures`.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self.stopped = False
        threading.Thread(target=self._run, name="background", daemon=True).start()

    def submit(self, call: Callable[[], Any]) -> concurrent.futures.Future:
        """Runs `call` after those before it."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._calls.put((call, future))
        return future

    def stop(self) -> None:
        """Ends the thread after the calls so far."""
        self.stopped = True
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
