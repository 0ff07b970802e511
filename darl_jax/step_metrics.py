"""What the steps report, taken from the device a little late."""

import collections
from collections.abc import Mapping

import jax
from clu.metrics import Average


class NotFiniteError(RuntimeError):
    """Too many updates in a row were dropped."""


class StepMetrics:
    """Means over the steps since the last line of the log.

    The host reads a step's metrics when it has started the next ones, so that it stays a few steps
    ahead of the device and no more.

    Args:
      max_dropped_in_a_row: updates that were not finite, one after the other, after which training
        is given up.
      steps_ahead: how far the host may go ahead.
    """

    def __init__(self, max_dropped_in_a_row: int, steps_ahead: int = 2):
        self._max_dropped = max_dropped_in_a_row
        self._steps_ahead = steps_ahead
        self._in_flight: collections.deque[tuple[int, Mapping[str, Average]]] = collections.deque()
        self._totals: dict[str, float] = collections.defaultdict(float)
        self._counts: dict[str, float] = collections.defaultdict(float)
        self.loss: float | None = None  # of the last step that was read

    def add(self, step: int, metrics: Mapping[str, Average], *, wait: bool) -> None:
        """Notes the metrics of a step that was started; with `wait`, until it has ended.

        Raises:
          NotFiniteError: too many updates in a row were dropped.
        """
        self._in_flight.append((step, metrics))
        while len(self._in_flight) > (0 if wait else self._steps_ahead):
            self._read(*self._in_flight.popleft())

    def _read(self, step: int, metrics: Mapping[str, Average]) -> None:
        values = jax.device_get(dict(metrics))
        for name, average in values.items():
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
        """Means since the last call; a mean of nothing (an empty decile) is left out."""
        means = {n: self._totals[n] / count for n, count in self._counts.items() if count}
        self._totals.clear()
        self._counts.clear()
        return means
