"""The live line: how far a run is, how fast, and when it ends."""

import contextlib
import datetime
import logging as python_logging
import math
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

_LIVE_SECONDS = 0.2  # between two drawings of the live line: quick to read, cheap to draw
_SPEED_SECONDS = 30.0  # what "recent" means for images/s and ETA


class Progress:
    """A line on standard error about how far a run is: live on a terminal, else now and then.

    It says step, loss, images/s, ETA and the time since this object was made. Images/s are those of
    the last half minute, without compilation (all before the first `update`) and without what is
    inside `pause`. ETA counts pauses in, at the rate at which there were any so far. Log messages
    are not mixed with the live line: it goes away for them and comes back.

    Args:
        total_steps: the step at which the run ends.
        batch_size: images in a step, of all processes together.
        start_step: the step that this process goes on from.
        active: whether anything is shown; of several processes, one is active.
        unit: what is counted, "step" or another word.
        plain_seconds: time between two lines where there is no terminal.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        batch_size: int,
        start_step: int = 0,
        active: bool = True,
        unit: str = "step",
        plain_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._active = active
        self._unit = unit
        self._stream = sys.stderr
        self._live = active and self._stream.isatty()
        self._every = _LIVE_SECONDS if self._live else plain_seconds
        self._clock = clock
        self._created = clock()
        self._step = start_step
        self._loss = math.nan
        self._first: float | None = None  # time of the first update
        self._paused = 0.0  # seconds in `pause` since then
        self._recent: deque[tuple[float, int]] = deque()  # (time without pauses, step)
        self._shown: tuple[float, int] | None = None  # time and step of the last line
        self._drawn = False
        # A log message from Orbax's threads may come while the line is being drawn.
        self._lock = threading.RLock()
        self._clearer = _LineClearer(self._clear)
        # On a bare root logger it would replace Python's handler of last resort.
        if self._live and python_logging.root.handlers:
            # Before the handlers that print.
            python_logging.root.handlers.insert(0, self._clearer)

    def update(self, step: int, loss: float | None = None) -> None:
        """Notes that `step` steps are done; cheap enough for every step.

        Args:
            step: steps done, of `total_steps`.
            loss: of a recent batch; None keeps the one before, so that not every step has to wait
                for its loss.
        """
        now = self._clock()
        if self._first is None:
            self._first = now
            self._paused = 0.0
        self._step = step
        self._loss = self._loss if loss is None else loss
        running = now - self._paused
        self._recent.append((running, step))
        # The oldest point stays just outside the window, for steps that take longer than it.
        while len(self._recent) > 2 and self._recent[1][0] <= running - _SPEED_SECONDS:
            self._recent.popleft()
        if self._shown is None or now - self._shown[0] >= self._every:
            self._show(now)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps evaluation, pictures and checkpoints out of images/s."""
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    @property
    def images_per_second(self) -> float:
        """Recent speed, pauses excluded; NaN until two updates are apart."""
        return self._steps_per_second() * self._batch_size

    def close(self) -> None:
        """Shows the last step, if it is not shown yet, and ends the live line."""
        if self._shown is not None and (self._live or self._shown[1] != self._step):
            self._show(self._clock())
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = False
        if self._clearer in python_logging.root.handlers:
            python_logging.root.handlers.remove(self._clearer)

    def _steps_per_second(self) -> float:
        if len(self._recent) < 2:
            return math.nan
        (began, first), (ended, last) = self._recent[0], self._recent[-1]
        return (last - first) / (ended - began) if ended > began else math.nan

    def _line(self, now: float) -> str:
        parts = [
            f"{self._unit} {self._step:,}/{self._total_steps:,} "
            f"({self._step / self._total_steps:.1%})"
        ]
        if not math.isnan(self._loss):
            parts.append(f"loss {self._loss:.4f}")
        speed = self._steps_per_second()
        if speed > 0 and self._first is not None:
            wall = now - self._first
            slowed = wall / (wall - self._paused)
            remaining = (self._total_steps - self._step) / speed * slowed
            parts.append(f"{self.images_per_second:,.1f} images/s")
            parts.append(f"ETA {_duration(remaining)}")
        parts.append(f"elapsed {_duration(now - self._created)}")
        return "  ".join(parts)

    def _show(self, now: float) -> None:
        self._shown = (now, self._step)
        if not self._active:
            return
        line = self._line(now)
        with self._lock:
            if self._live:
                # A line that wraps could not be drawn over.
                width = shutil.get_terminal_size().columns - 1
                self._stream.write(f"\r{line[:width]}\x1b[K")
                self._drawn = True
            else:
                self._stream.write(f"{line}\n")
            self._stream.flush()

    def _clear(self) -> None:
        with self._lock:
            if self._drawn:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
                self._drawn = False


class _LineClearer(python_logging.Handler):
    """Handler that prints nothing and makes room for those after it."""

    def __init__(self, clear: Callable[[], None]) -> None:
        super().__init__()
        self._clear = clear

    def emit(self, record: python_logging.LogRecord) -> None:  # noqa: ARG002 - logging's signature
        self._clear()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
