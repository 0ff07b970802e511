"""Live line, lines of metrics and warnings of a training run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from darl_jax.monitoring.bottlenecks import Bottlenecks, host_names, input_shares
from darl_jax.monitoring.clock import Clock
from darl_jax.monitoring.profiling import device_memory, host_memory
from darl_jax.monitoring.progress import Progress
from darl_jax.monitoring.writers import MetricWriter
from darl_jax.runtime import cluster


@dataclasses.dataclass
class RunLog:
    """Adds speed, utilization, goodput and memory to the metrics of steps, and shows a live line.

    All processes create one and call the same methods together, for a slow process is found by
    comparing them.
    """

    writer: MetricWriter
    clock: Clock
    total_steps: int
    batch_size: int  # of all processes together
    steps_per_epoch: float
    flops_per_example: int  # in a training step
    peak_flops: float | None  # of one device, where it is known
    learning_rate: Callable[[int], Any]  # of an update, counted from 0

    def __post_init__(self) -> None:
        self._bottlenecks = Bottlenecks(host_names())
        self._progress: Progress | None = None
        self._last_step = 0

    def begin(self, step: int) -> None:
        """Begins the first window and the live line, for the steps after `step`."""
        self._last_step = step
        self.clock.window()
        self.note(step)
        active = jax.process_index() == 0
        self._progress = Progress(self.total_steps, start=step, active=active)

    def show(self, step: int, loss: float | None) -> None:
        """Updates the live line after a step; cheap enough for each."""
        if self._progress is not None:
            self._progress.update(step, "" if loss is None else f"loss {loss:.4f}")

    def note(self, step: int, *, finished: bool = False) -> None:
        """Writes the account of the time at once, for the run may be killed."""
        self.writer.scalars(step, self.clock.summary(finished=finished))
        self.writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line for the steps since the last one, which are done; warns of bottlenecks."""
        with self.clock("device"):  # A process waits here for slower ones.
            times = cluster.gather(self.clock.window())
        num_steps, self._last_step = step - self._last_step, step
        if jax.process_index() == 0:
            for text in self._bottlenecks.warnings(times, num_steps):
                logging.warning(text)
        line = dict(values)
        # Dropped updates do not count for the schedule.
        updates = step - 1 - int(values["dropped_updates"])
        with jax.transfer_guard("allow"):  # A schedule is a small program of its own.
            line["learning_rate"] = float(self.learning_rate(max(updates, 0)))
        line["epoch"] = step / self.steps_per_epoch
        line["input_wait"] = float(input_shares(times).max())
        speed = num_steps * self.batch_size / max(float(times[0].sum()), 1e-9)
        line["examples_per_second"] = speed
        line["model_tflops_per_second"] = self.flops_per_example * speed / 1e12
        if self.peak_flops is not None:
            peak = self.peak_flops * jax.device_count()
            line["model_flops_utilization"] = self.flops_per_example * speed / peak
        line = {f"train/{name}": value for name, value in line.items()}
        line |= self.clock.summary() | device_memory() | host_memory()
        self.writer.scalars(step, line)

    def close(self) -> None:
        """Erases the live line."""
        if self._progress is not None:
            self._progress.close()
