"""The line of metrics that a run writes now and then, and what it warns of."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from darl_jax.config import TrainConfig
from darl_jax.monitoring.bottlenecks import Bottlenecks, host_names, input_shares
from darl_jax.monitoring.goodput import Goodput
from darl_jax.monitoring.profiling import device_memory, host_memory
from darl_jax.monitoring.progress import Progress
from darl_jax.monitoring.writers import MetricWriter
from darl_jax.nn.flops import peak_flops
from darl_jax.runtime import cluster
from darl_jax.training import build


class RunLog:
    """Adds speed, utilisation, goodput and memory to what the steps report.

    All processes make one and write together, for what holds a run up is seen by comparing them.

    Args:
      config: of the run.
      learning_rate: of an update, counted from 0.
      steps_per_epoch: batches in the training split.
      writer: where the line goes.
      progress: knows the speed.
      goodput: knows where the time went.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        learning_rate: Callable[[int], Any],
        steps_per_epoch: float,
        writer: MetricWriter,
        progress: Progress,
        goodput: Goodput,
    ):
        self._learning_rate = learning_rate
        self._steps_per_epoch = steps_per_epoch
        self._writer = writer
        self._progress = progress
        self._goodput = goodput
        self._image_flops = build.step_flops(config) / config.batch_size
        self._peak = peak_flops(jax.devices()[0])
        self._bottlenecks = Bottlenecks(config.data, host_names())
        self._last_step = 0

    def begin(self, step: int) -> None:
        """Starts the first window, for the steps after this one."""
        self._last_step = step
        self._goodput.window()
        self.note(step)

    def note(self, step: int, *, finished: bool = False) -> None:
        """Writes where the time went: now and not later, for the run may be killed.

        Args:
          step: steps done.
          finished: whether the run ends here.
        """
        self._writer.scalars(step, self._goodput.summary(finished=finished))
        self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line for the steps since the last one, and warns of what held them up.

        Args:
          step: the last of them.
          values: what they report, from `StepMetrics.summary`.
        """
        with self._goodput.spent("device"):  # Where a process waits for slower ones.
            times = cluster.gather(self._goodput.window())
        if jax.process_index() == 0:
            for text in self._bottlenecks.warnings(times, step - self._last_step):
                logging.warning(text)
        self._last_step = step
        line = dict(values)
        # Dropped updates do not count for the schedule.
        updates = step - 1 - int(values["dropped_updates"])
        line["learning_rate"] = float(self._learning_rate(max(updates, 0)))
        line["epoch"] = step / self._steps_per_epoch
        line["input_wait"] = float(input_shares(times).max())
        line["images_per_second"] = self._progress.images_per_second
        flops_per_second = self._image_flops * line["images_per_second"]
        line["model_tflops_per_second"] = flops_per_second / 1e12
        if self._peak is not None:
            line["model_flops_utilisation"] = flops_per_second / (self._peak * jax.device_count())
        self._writer.scalars(
            step,
            {f"train/{name}": value for name, value in line.items()}
            | self._goodput.summary()
            | device_memory()
            | host_memory(),
        )
