"""Fetches step metrics a few steps late."""

import collections
import math
from collections.abc import Mapping

import jax
from clu.metrics import Average

_STEPS_AHEAD = 2
_COUNTERS = ("dropped_updates", "dropped_in_a_row")


class NotFiniteError(RuntimeError):
    """Too many updates in a row were dropped."""


class StepMetrics:
    """Averages metrics over the steps since the last summary.

    The host reads a step's metrics after it has started two more steps, so that it stays a few
    steps ahead of the device and no more. All processes read the same steps at the same time.
    Too many dropped updates in a row are a NotFiniteError.

    Attributes:
      loss: of the last step that was read, or None.
      stop_requested: whether a process had received a signal when a step that was read began.
    """

    def __init__(self, max_dropped_in_a_row: int):
        self._max_dropped = max_dropped_in_a_row
        self._in_flight: collections.deque[tuple[int, Mapping[str, Average]]] = collections.deque()
        self._totals: dict[str, float] = collections.defaultdict(float)
        self._counts: dict[str, float] = collections.defaultdict(float)
        self._counters: dict[str, float] = {}
        self.loss: float | None = None
        self.stop_requested = False

    def add(self, step: int, metrics: Mapping[str, Average]) -> None:
        """Takes the metrics of a step that was started, and reads those of an earlier one."""
        self._in_flight.append((step, metrics))
        self._read_all_but(_STEPS_AHEAD)

    def wait(self) -> None:
        """Waits for all steps and reads their metrics."""
        self._read_all_but(0)

    def _read_all_but(self, number: int) -> None:
        while len(self._in_flight) > number:
            self._read(*self._in_flight.popleft())

    def _read(self, step: int, metrics: Mapping[str, Average]) -> None:
        values = jax.device_get(dict(metrics))
        for name, average in values.items():
            if name == "stop_requested":
                self.stop_requested |= bool(average.total)
            elif name in _COUNTERS:
                self._counters[name] = float(average.total)
            elif math.isfinite(average.total):  # A dropped step must not hide the others.
                self._totals[name] += float(average.total)
                self._counts[name] += float(average.count)
        self.loss = float(values["loss"].compute())
        dropped = int(values["dropped_in_a_row"].total)
        if dropped >= self._max_dropped:
            raise NotFiniteError(
                f"loss or gradient was not finite in {dropped} steps in a row, "
                f"{step - dropped + 1} to {step}; their updates were dropped"
            )

    def summary(self) -> dict[str, float]:
        """Means since the last call, without values that are not finite, and current counters.

        A mean of no values (an empty decile) is left out.
        """
        means = {n: self._totals[n] / count for n, count in self._counts.items() if count}
        self._totals.clear()
        self._counts.clear()
        return means | self._counters
