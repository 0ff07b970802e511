"""Which questions a run asks of its model, and when."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping

import jax
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from darl_jax.config import TrainConfig
from darl_jax.data.pipeline import Sources, eval_batches
from darl_jax.evaluators import linear_probe
from darl_jax.evaluators.linear_probe import LinearProbe
from darl_jax.evaluators.pictures import Pictures
from darl_jax.evaluators.validation_loss import ValidationLoss
from darl_jax.metrics import MetricWriter
from darl_jax.models.darl import DARL
from darl_jax.objectives import Objective

_SECONDS = "evaluation/seconds"


class Evaluation:
    """The evaluators that a config asks for, each at multiples of its own steps and at the end.

    Raises:
      ValueError: the data cannot answer what is asked.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Sources,
        graphdef: nnx.GraphDef[DARL],
        objective: Objective,
        *,
        initial_params: Callable[[], PyTree],
        mesh: Mesh,
    ):
        self._config = config.evaluation
        batches = functools.partial(
            eval_batches,
            config=config.data,
            # No larger than what a step holds at once.
            batch_size=config.batch_size // config.accumulation_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        validation = functools.partial(batches, sources.validation)
        mean, std = config.data.mean, config.data.std
        if self._config.loss_every_steps:
            self._loss = ValidationLoss(graphdef, objective, validation, mesh)
        if self._config.pictures_every_steps:
            self._pictures = Pictures(
                graphdef,
                objective,
                validation,
                number=self._config.num_pictures,
                mean=mean,
                std=std,
                mesh=mesh,
            )
        if self._config.probe_every_steps:
            records = linear_probe.training_records(
                sources.train, self._config.probe, skip_bad=config.data.on_bad_record == "skip"
            )
            self._probe = LinearProbe(
                self._config.probe,
                graphdef,
                initial_params=initial_params,
                # A few hundred records: starting workers would take longer than reading them.
                training_batches=functools.partial(
                    batches, records, config=dataclasses.replace(config.data, num_workers=0)
                ),
                test_batches=validation,
                mean=mean,
                std=std,
                mesh=mesh,
            )

    def due(self, step: int, *, last: bool) -> bool:
        """Whether anything is asked after this step."""
        every = self._config
        return any(
            _due(steps, step, last)
            for steps in (
                every.loss_every_steps,
                every.pictures_every_steps,
                every.probe_every_steps,
            )
        )

    def run(
        self, params: PyTree, key: PRNGKeyArray, step: int, writer: MetricWriter, *, last: bool
    ) -> None:
        """Asks what is due, and logs and writes the answers; numbers all at once, at the end."""
        numbers: dict[str, float] = {}
        began = time.monotonic()
        if _due(self._config.loss_every_steps, step, last):
            values = dict(self._loss.run(params, key))
            numbers |= {f"validation/{name}": value for name, value in values.items()}
            logging.info("Step %d: validation loss %.5f", step, values["loss"])
        if _due(self._config.pictures_every_steps, step, last):
            writer.images(step, self._pictures.run(params, key, step))
        if _due(self._config.probe_every_steps, step, last):
            values = dict(self._probe.run(params, key))
            numbers |= values
            logging.info("Step %d: %s", step, linear_probe.comparison(values, self._config.probe))
        # The last key, and never without the others: `made` looks for it.
        writer.scalars(step, numbers | {_SECONDS: time.monotonic() - began})


def made(history: Iterable[Mapping[str, int | float]], step: int) -> bool:
    """Whether an evaluation at a step is in a run's metrics."""
    return any(line["step"] == step and _SECONDS in line for line in history)


def _due(every_steps: int, step: int, last: bool) -> bool:
    return every_steps > 0 and (last or step % every_steps == 0)
