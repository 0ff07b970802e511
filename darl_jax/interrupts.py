"""SIGTERM and Ctrl-C ask a run to save and leave; a second Ctrl-C does not wait."""

import os
import signal
import sys
import types
from collections.abc import Callable
from typing import Any


class StopRequest:
    """Catches SIGTERM and SIGINT while it is entered.

    Until `begin_training` there is nothing to save, and a signal ends the process at once, without
    an exception: one that is raised inside the compiler may be lost there, or crash it.

    Attributes:
      signal: the name of the signal that came while training, or None.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._training = False
        self._previous: dict[int, Callable[..., Any] | int | None] = {}

    def begin_training(self) -> None:
        """From now on a signal is noted, for the training loop to save and leave."""
        self._training = True

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: types.FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._training:
            print(f"{name} before training began: nothing was changed", file=sys.stderr, flush=True)
            os._exit(128 + number)
        if self.signal is not None and number == signal.SIGINT:
            # Whatever is being written is not complete and will be ignored.
            os._exit(128 + number)
        self.signal = name
