"""SIGTERM and Ctrl-C: handled at once, also while the main thread is inside the compiler."""

import contextlib
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn


@contextlib.contextmanager
def handling(
    numbers: tuple[int, ...],
    at_once: Callable[[int], None],
    on_main: Callable[[int], None] = lambda _: None,
) -> Iterator[None]:
    """Calls two handlers with the number of a signal, while entered.

    Python calls a handler in the main thread, when that returns from compiled code: minutes late
    in a compilation. An exception that is raised there may be lost, or crash the compiler. So
    `at_once` is called on a thread of its own, and `on_main` later, in the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        with open(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] in numbers:
                    at_once(number[0])

    threading.Thread(target=listen, name="signals", daemon=True).start()
    previous = {n: signal.signal(n, lambda number, _: on_main(number)) for n in numbers}
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_writer)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(writer)


_unfinished: set[pathlib.Path] = set()


@contextlib.contextmanager
def unfinished(path: pathlib.Path) -> Iterator[None]:
    """Removes a folder or file if the body raises, or if Ctrl-C ends the program in it."""
    _unfinished.add(path)
    try:
        yield
    except BaseException:
        _remove(path)
        raise
    finally:
        _unfinished.discard(path)


def discard_unfinished() -> None:
    """Removes the folders and files that are being written."""
    for path in list(_unfinished):
        _remove(path)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class StopRequest:
    """Handles SIGTERM and SIGINT of a training run while it is entered.

    Before `begin_training` nothing has to be saved, and a signal ends the process at once. In
    `leaving_after` it ends it once `finish` returns. Otherwise it is noted, and the training loop
    saves and leaves.

    Args:
      leave: ends this process and all others of the run with an exit code and a line of text.

    Attributes:
      signal: name of the signal that came during training, or None.
      training: training has begun.
    """

    def __init__(self, leave: Callable[[int, str], NoReturn]) -> None:
        self.signal: str | None = None
        self._leave = leave
        self.training = False
        self._finish: Callable[[], str] | None = None
        self._handling = handling(
            (signal.SIGTERM, signal.SIGINT), self._before_training, self._in_training
        )

    def begin_training(self) -> None:
        """Notes signals from now on, for the training loop to save and leave."""
        self.training = True

    @contextlib.contextmanager
    def leaving_after(self, finish: Callable[[], str]) -> Iterator[None]:
        """Lets a signal, an earlier one too, end the process at once, in an evaluation say.

        `finish` is called first, on the main thread; it returns the text after the signal's name.
        """
        self._finish = finish
        if self.signal is not None:
            self._leave(os.EX_TEMPFAIL, f"{self.signal}: {finish()}")
        try:
            yield
        finally:
            self._finish = None

    def __enter__(self) -> "StopRequest":
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__(None, None, None)

    def _before_training(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self.training:
            self._leave(128 + number, f"{name} before training began: nothing was changed")

    def _in_training(self, number: int) -> None:
        name = signal.Signals(number).name
        if not self.training:
            return
        if self._finish is not None:
            self._leave(os.EX_TEMPFAIL, f"{name}: {self._finish()}")
        elif self.signal is not None and number == signal.SIGINT:
            # What is being written is not complete and will be ignored.
            self._leave(128 + number, f"{name} again: the run goes on from its last checkpoint")
        else:
            self.signal = name
