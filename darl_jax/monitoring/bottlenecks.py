"""Warnings of bottlenecks: waiting for data, or one process that all others wait for."""

import socket
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from darl_jax.runtime import cluster

_INPUT_SHARE = 0.1  # of the loop's time; waiting longer for data is worth a warning
_STRAGGLER_SHARE = 0.1  # of the loop's time; see `straggler`
_JUDGED_SECONDS = 10.0  # of the loop; shorter windows are added up, since one hiccup is no trend
_REPEAT_SECONDS = 300.0  # between two warnings of the same kind and process
_NAME_BYTES = 64


def host_names() -> list[str]:
    """Host of each process. A collective."""
    name = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    rows = cluster.gather(np.frombuffer(name, np.uint8))
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def input_shares(times: Float[np.ndarray, "process 3"]) -> Float[np.ndarray, " process"]:
    """Share of the loop's time in which each process waited for data, from `Clock.window`."""
    return times[:, 0] / np.maximum(times.sum(axis=1), 1e-9)


def straggler(times: Float[np.ndarray, "process 3"]) -> tuple[int, float] | None:
    """Process that all others wait for, and the seconds that they do so at most, or None.

    All processes take a step together, so the one that others wait for is the one that does not
    wait: it waits for its device less than 10% of the time, and is busy for longer than the median
    of the others, by more than 10% of the time. A slow device is not found: all hosts wait for it
    alike. Times are those of `Clock.window`: waiting for input, the host's own, for the device.
    """
    if len(times) < 2:
        return None
    busy = times[:, 0] + times[:, 1]
    slowest = int(np.argmax(busy))
    wall = times[slowest].sum()
    excess = busy[slowest] - np.median(np.delete(busy, slowest))
    if times[slowest, 2] >= _STRAGGLER_SHARE * wall or excess <= _STRAGGLER_SHARE * wall:
        return None
    return slowest, float(excess)


class Bottlenecks:
    """Judges windows of at least 10 seconds, and repeats a warning after 5 minutes only."""

    def __init__(self, hosts: Sequence[str], *, now: Callable[[], float] = time.monotonic) -> None:
        self._hosts = hosts
        self._now = now
        self._warned: dict[tuple[str, int], float] = {}
        self._times = np.zeros((len(hosts), 3))
        self._num_steps = 0

    def warnings(self, times: Float[np.ndarray, "process 3"], num_steps: int) -> list[str]:
        """Lines to log, most often none, for the times of the steps since the last call."""
        self._times = self._times + times
        self._num_steps += num_steps
        if self._times.sum(axis=1).max() < _JUDGED_SECONDS:
            return []
        times, num_steps = self._times, self._num_steps
        self._times, self._num_steps = np.zeros_like(times), 0

        found = []
        slow, shares = straggler(times), input_shares(times)
        if slow is not None:
            process, seconds = slow
            more_input, more_host = times[process, :2] - np.median(times[:, :2], axis=0)
            reason = "it waits for its data" if more_input > more_host else "its host is slow"
            text = f"holds the others up for {seconds / num_steps:.3g} s of each step: {reason}"
            found.append(("straggler", process, text))
        hungriest = int(np.argmax(shares))
        if shares[hungriest] > _INPUT_SHARE:
            text = f"waits for data in {shares[hungriest]:.0%} of the time of {num_steps} steps"
            found.append(("input", hungriest, text))
        return [
            f"Process {process} on {self._hosts[process]} {text}"
            for kind, process, text in found
            if self._is_due((kind, process))
        ]

    def _is_due(self, key: tuple[str, int]) -> bool:
        now = self._now()
        if now - self._warned.get(key, -np.inf) < _REPEAT_SECONDS:
            return False
        self._warned[key] = now
        return True
