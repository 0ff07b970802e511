"""One clock for a run: puts each second into exactly one category, over all attempts of the run."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import psutil
from jaxtyping import Float

from darl_jax.monitoring.writers import read_metrics

CATEGORIES = (
    *("productive", "input", "evaluation", "checkpoint", "compile", "startup"),
    "lost",  # stands last: figures show what an attempt lost before its own time
)
# Productive time has two parts: the host's own work, and its wait for the device.
_HOST, _DEVICE = "host", "device"
_WINDOW = ("input", _HOST, _DEVICE)
_NAMES = ("startup", "compile", "input", "checkpoint", "evaluation", _DEVICE)

SHARE, ATTEMPT, FINISHED = "goodput/share", "goodput/attempt", "goodput/finished"

History = Sequence[Mapping[str, int | float]]


def seconds_key(category: str) -> str:
    """Name of a category's seconds in a line of metrics."""
    return f"goodput/{category}_seconds"


def history_until(workdir: os.PathLike | str, step: int) -> History:
    """Metrics of earlier attempts, without the steps after `step`, which are done again."""
    try:
        history = read_metrics(workdir)
    except FileNotFoundError:
        return []
    return [line for line in history if line["step"] <= step]


class Clock:
    """Measures where a run's time goes: `with clock("input"): batch = next(batches)`.

    Attempts share an account through `metrics.jsonl` alone, where the numbers of `summary` stand: a
    new attempt continues from the last line that is still valid and counts the time after it as
    lost (nothing ran, or steps ran that no checkpoint held). An attempt that was killed before its
    first line is lost time too. Between a finished run and its extension nothing is lost.

    Start-up lasts from the creation of this process until the first batch is there, compilation
    excluded. After it, time outside of every `with` is the host's share of training steps. Where
    the clock goes backwards, no time passes.
    """

    def __init__(
        self,
        history: History = (),
        *,
        created: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        created = psutil.Process().create_time() if created is None else created
        self._now = now
        last = next((line for line in reversed(history) if SHARE in line), {})
        self._seconds = {
            category: float(last.get(seconds_key(category), 0)) for category in CATEGORIES
        }
        # Of this attempt; `summary` adds them to the productive time.
        self._seconds |= {_HOST: 0.0, _DEVICE: 0.0}
        self._attempt = int(last.get(ATTEMPT, 0)) + 1
        if last and FINISHED not in last:
            # The clock of the previous machine may have been ahead.
            self._seconds["lost"] += max(0.0, created - last["time"])
        self._training = False
        self._category = "startup"
        self._since = min(created, now())
        self._window_began = self._loop_seconds()

    @contextlib.contextmanager
    def __call__(self, category: str) -> Iterator[None]:
        """Counts the time inside for a category; an inner `with` counts for its own alone.

        'device' is the wait for results of steps, and productive. The first wait for input is
        start-up.
        """
        if category not in _NAMES:
            raise ValueError(f"there is no category of time {category!r}; choose from {_NAMES}")
        first_batch = category == "input" and not self._training
        before = self._turn_to("startup" if first_batch else category)
        try:
            yield
            if first_batch:
                self._training = True
                before = _HOST
        finally:
            self._turn_to(before)

    def summary(self, *, finished: bool = False) -> dict[str, float]:
        """Account so far, for a line of metrics; time after a run that is finished is not lost.

        The seconds of all categories add up to the time since the first attempt began.
        """
        self._turn_to(self._category)
        seconds = {category: self._seconds[category] for category in CATEGORIES}
        seconds["productive"] += self._seconds[_HOST] + self._seconds[_DEVICE]
        wall = sum(seconds.values())
        values = {SHARE: seconds["productive"] / wall if wall else 0.0}
        values |= {seconds_key(category): x for category, x in seconds.items()}
        values[ATTEMPT] = float(self._attempt)
        return values | ({FINISHED: 1.0} if finished else {})

    def window(self) -> Float[np.ndarray, " part=3"]:
        """Seconds of the loop since the last call: input, host, device."""
        self._turn_to(self._category)
        before, self._window_began = self._window_began, self._loop_seconds()
        return self._window_began - before

    def _loop_seconds(self) -> Float[np.ndarray, " part=3"]:
        return np.array([self._seconds[part] for part in _WINDOW])

    def _turn_to(self, category: str) -> str:
        """Counts until now and changes the category; returns the previous one."""
        now = self._now()
        if now > self._since:
            self._seconds[self._category] += now - self._since
        self._since = now
        before, self._category = self._category, category
        return before
