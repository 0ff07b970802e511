"""SIGTERM and Ctrl-C ask a run to save and leave; a second Ctrl-C does not wait."""

import contextlib
import signal
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from darl_jax.runtime.cli import EXIT_INTERRUPTED


class StopRequest:
    """Catches SIGTERM and SIGINT while it is entered.

    Until `begin_training` there is nothing to save, and a signal ends the process at once, without
    an exception: one that is raised inside the compiler may be lost there, or crash it. In
    `leaving_after` it does so too, once what is to be finished is.

    Args:
      leave: ends this process and all others of the run with an exit code and a line that says why.

    Attributes:
      signal: the name of the signal that came while training, or None.
    """

    def __init__(self, leave: Callable[[int, str], NoReturn]) -> None:
        self.signal: str | None = None
        self._leave = leave
        self._training = False
        self._ended = False
        self._finish: Callable[[], str] | None = None
        self._previous: dict[int, Callable[..., Any] | int | None] = {}

    def begin_training(self) -> None:
        """From now on a signal is noted, for the training loop to save and leave."""
        self._training = True

    def end_training(self) -> None:
        """From now on SIGTERM asks for what happens anyway, and Ctrl-C does not wait for it."""
        self._ended = True

    @contextlib.contextmanager
    def leaving_after(self, finish: Callable[[], str]) -> Iterator[None]:
        """Lets a signal, an earlier one too, end the process at once, in an evaluation say.

        Args:
          finish: called first, on the main thread; returns the message that stands behind the
            signal's name.
        """
        self._finish = finish
        if self.signal is not None:
            self._leave(EXIT_INTERRUPTED, f"{self.signal}: {finish()}")
        try:
            yield
        finally:
            self._finish = None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: types.FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._ended:
            if number == signal.SIGINT:
                self._leave(128 + number, f"{name}: everything is saved")
            return
        if not self._training:
            self._leave(128 + number, f"{name} before training began: nothing was changed")
        if self._finish is not None:
            self._leave(EXIT_INTERRUPTED, f"{name}: {self._finish()}")
        if self.signal is not None and number == signal.SIGINT:
            # Whatever is being written is not complete and will be ignored.
            self._leave(128 + number, f"{name} again: the run goes on from its last checkpoint")
        self.signal = name
