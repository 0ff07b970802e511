"""Schedules and runs evaluators, during training or on a checkpoint."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree

from darl_jax.data.base import DataConfig, Split, Splits
from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig
from darl_jax.monitoring.writers import MetricWriter

_SECONDS = "evaluation/seconds"


class Evaluation:
    """The evaluators of a run, each at multiples of its own steps and at the end.

    Args:
      configs: of the evaluators by name; the name begins the names of their values.
      context: of the run.

    Raises:
      ValueError: an evaluator's data or method does not suit it; the message names the evaluator.
    """

    def __init__(self, configs: Mapping[str, EvaluatorConfig], context: Context):
        self._configs = {name: each for name, each in configs.items() if each.every_steps}
        self._evaluators: dict[str, Evaluator] = {}
        self.read: list[tuple[Split, DataConfig]] = []  # Splits that evaluators may read.
        opened: dict[DataConfig, Splits] = {context.data: context.splits}
        for name, config in self._configs.items():
            with naming(f"config.evaluators.{name}"):
                data = config.data or context.data
                if data not in opened:
                    opened[data] = data.open()
                own = context.on(data, opened[data])
                self._evaluators[name] = config.build(own)
                self.read += [(split, data) for split in opened[data]]

    def due(self, step: int, *, last: bool) -> bool:
        """Whether an evaluator runs after this step."""
        return any(self._is_due(name, step, last) for name in self._configs)

    def missing(self, history: Iterable[Mapping[str, int | float]], step: int, last: bool) -> bool:
        """Whether an evaluation is due at a step and not in a run's metrics."""
        done = any(line["step"] == step and _SECONDS in line for line in history)
        return self.due(step, last=last) and not done

    def _is_due(self, name: str, step: int, last: bool) -> bool:
        return last or step % self._configs[name].every_steps == 0

    def run(
        self, params: PyTree, step: int, writer: MetricWriter, *, last: bool
    ) -> dict[str, float]:
        """Runs the evaluators that are due, writing each one's values before the next begins.

        Returns:
          The numbers by name.
        """
        numbers: dict[str, float] = {}
        began = time.monotonic()
        for name, evaluator in self._evaluators.items():
            if self._is_due(name, step, last):
                with naming(f"evaluator {name!r} at step {step}"):
                    numbers |= self._run(name, evaluator, params, step, writer)
        # Written last and never without the others: `missing` looks for it.
        writer.scalars(step, {_SECONDS: time.monotonic() - began})
        return numbers

    def _run(
        self, name: str, evaluator: Evaluator, params: PyTree, step: int, writer: MetricWriter
    ) -> dict[str, float]:
        numbers: dict[str, float] = {}
        # Pictures of a kind's only evaluator have plain names.
        prefix = "" if name == self._configs[name].kind else f"{name}_"
        for key, value in evaluator.run(params, step):
            if isinstance(value, np.ndarray):
                writer.images(step, {prefix + key: value})
            elif isinstance(value, Mapping):
                writer.arrays(step, prefix + key, value)
            else:
                numbers[key] = value
        if numbers:
            logging.info("Step %d: %s: %s", step, name, evaluator.summary(numbers))
        numbers = {f"{name}/{key}": value for key, value in numbers.items()}
        writer.scalars(step, numbers)
        return numbers


@contextlib.contextmanager
def naming(prefix: str) -> Iterator[None]:
    """Puts a prefix before the message of an error that a user can act on."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error
    except (OSError, jax.errors.JaxRuntimeError) as error:
        error.add_note(prefix)
        raise
