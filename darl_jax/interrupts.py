"""SIGTERM and Ctrl-C ask a run to save and leave; a second Ctrl-C does not wait."""

import os
import signal
import types
from collections.abc import Callable
from typing import Any

from darl_jax.cli import EXIT_KILLED


class StopRequest:
    """Catches SIGTERM and SIGINT while it is entered; `signal` says which came, or None."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._previous: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: types.FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            # Whatever is being written is not complete and will be ignored.
            os._exit(EXIT_KILLED)
        self.signal = signal.Signals(number).name
