"""What holds a run up: waiting for data, or one process that all others wait for."""

import dataclasses
import os
import socket
import time
from collections.abc import Callable, Sequence

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.pipeline import usable_cores

_INPUT_SHARE = 0.1  # of the loop's time; above it waiting for data is worth a warning
_STRAGGLER_SHARE = 0.1  # of a step's time; see `straggler`
_JUDGED_SECONDS = 10.0  # of the loop; shorter windows are added up, since one hiccup is no trend
_REPEAT_SECONDS = 300.0  # between two warnings of the same thing

_NAME_BYTES = 64


def host_names() -> list[str]:
    """The host that each process runs on. All processes must call it together."""
    name = socket.gethostname().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    gathered = multihost_utils.process_allgather(np.frombuffer(name, np.uint8))
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in gathered]


@dataclasses.dataclass(frozen=True)
class Straggler:
    """A process that the others wait for.

    Attributes:
      process: its number.
      seconds: of each step that the others wait for it, at most: less where the device would be
        busy for a part of them anyway.
      by_input: whether it waits for its data; otherwise its host is slow.
    """

    process: int
    seconds: float
    by_input: bool


def straggler(times: Float[np.ndarray, "process 3"], num_steps: int) -> Straggler | None:
    """The process that holds all others up, if there is one.

    All processes take a step together, so the one that others wait for is the one that does not
    wait: it hardly ever waits for its device (under 10% of the time), and is busy by more than 10%
    of a step's time longer than the median of the others. A slow device is not found by this: all
    hosts wait for it alike.

    Args:
      times: seconds that each process waited for input, was busy itself, and waited for its device,
        as `Goodput.window` gives them.
      num_steps: steps in these seconds.
    """
    if len(times) < 2:
        return None
    busy, wall = times[:, 0] + times[:, 1], times.sum(axis=1)
    slowest = int(np.argmax(busy))
    others = np.median(np.delete(times, slowest, axis=0), axis=0)
    excess = busy[slowest] - np.median(np.delete(busy, slowest))
    waits = times[slowest, 2]
    if waits >= _STRAGGLER_SHARE * wall[slowest] or excess <= _STRAGGLER_SHARE * wall[slowest]:
        return None
    more_input, more_host = times[slowest, :2] - others[:2]
    return Straggler(slowest, float(excess) / num_steps, bool(more_input > more_host))


def input_advice(data: ImagesConfig, cpu_count: int) -> str:
    """What to change where the loop waits for data.

    Args:
      data: how it is read.
      cpu_count: cores of the machine for each process of the run on it.
    """
    if data.in_memory:
        return (
            "the images are in memory already, and threads of this program crop them: give it more "
            "CPU cores that nothing else uses, or spread the run over more hosts"
        )
    if data.num_workers < cpu_count:
        return (
            f"config.data.num_workers={data.num_workers} leaves cores unused: set it to {cpu_count}"
        )
    workers = (
        f"all {cpu_count} cores have a worker: spread the run over more hosts or take a machine "
        "with more cores, store the images smaller (decoding costs by the pixels of the file), or, "
        "for small images of one size, set config.data.in_memory=True"
    )
    if "://" in data.data_dir:
        return (
            f"config.data.data_dir={data.data_dir} is read over the network: copy it to a local "
            f"disk if the cores are not all busy; if they are: {workers}"
        )
    return workers


class Bottlenecks:
    """Warns of what holds a run up, and not again for some minutes unless it changes.

    Args:
      data: how the run's data is read.
      hosts: from `host_names`.
      cpu_count: cores of a host; None asks the operating system for those of this process.
      clock: seconds from any origin.
    """

    def __init__(
        self,
        data: ImagesConfig,
        hosts: Sequence[str],
        *,
        cpu_count: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._data = data
        self._hosts = hosts
        self._cpu_count = cpu_count or usable_cores()
        # Or the processes of a machine have their own cores each.
        self._cores_are_shared = self._cpu_count == (cpu_count or os.cpu_count())
        self._clock = clock
        self._said: dict[tuple[str, int], float] = {}
        self._times = np.zeros((len(hosts), 3))
        self._num_steps = 0

    def warnings(self, times: Float[np.ndarray, "process 3"], num_steps: int) -> list[str]:
        """What there is to say now, most often nothing.

        Args:
          times: those of the steps since the last call, as for `straggler`.
          num_steps: how many these were.
        """
        self._times = self._times + times
        self._num_steps += num_steps
        if self._times.sum(axis=1).max() < _JUDGED_SECONDS:
            return []
        times, num_steps = self._times, self._num_steps
        self._times, self._num_steps = np.zeros_like(times), 0

        slow = straggler(times, num_steps)
        shares = input_shares(times)
        hungriest = int(np.argmax(shares))
        found: list[tuple[str, int, str]] = []
        if slow is not None:
            step_seconds = times[slow.process].sum() / num_steps
            found.append(
                ("straggler", slow.process, self._straggler_text(slow, float(step_seconds)))
            )
        if shares[hungriest] > _INPUT_SHARE and not (slow is not None and slow.by_input):
            text = self._input_text(hungriest, float(shares[hungriest]), num_steps)
            found.append(("input", hungriest, text))
        return [text for kind, process, text in found if self._is_news((kind, process))]

    def _is_news(self, key: tuple[str, int]) -> bool:
        now = self._clock()
        if key in self._said and now - self._said[key] < _REPEAT_SECONDS:
            return False
        self._said[key] = now
        return True

    def _straggler_text(self, slow: Straggler, step_seconds: float) -> str:
        reason = (
            "it waits for its data: compare its disk, network and CPU load with those of the others"
            if slow.by_input
            else "its program is slow itself: look for another program on that host, too little "
            "memory, or a slow disk"
        )
        return (
            f"Process {slow.process} on {self._hosts[slow.process]} holds the others up, by up to "
            f"{slow.seconds:.3g} of the {step_seconds:.3g} s of a step; {reason}"
        )

    def _input_text(self, process: int, share: float, num_steps: int) -> str:
        host = self._hosts[process]
        who = "the run" if len(self._hosts) == 1 else f"process {process} on {host}"
        sharing = self._hosts.count(host) if self._cores_are_shared else 1
        cores = max(1, self._cpu_count // sharing)
        return (
            f"Input-bound: {who} waited for data in {share:.0%} of the last {num_steps} steps' "
            f"time; {input_advice(self._data, cores)}"
        )


def input_shares(times: Float[np.ndarray, "process 3"]) -> Float[np.ndarray, " process"]:
    """The share of its time that each process waited for data, for times as in `straggler`."""
    return times[:, 0] / np.maximum(times.sum(axis=1), 1e-9)
