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
    """Evaluators of a run, each at multiples of its own steps and at the end.

    Values are written as <name>/<value>, with the names of `configs`.

    Raises:
      ValueError: the method or the data does not suit an evaluator; the message names it.
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
                self._evaluators[name] = config.build(context.on(data, opened[data]))
                self.read += [(split, data) for split in opened[data]]

    def due(self, step: int, *, last: bool) -> bool:
        """True where an evaluator runs after this step."""
        return any(self._is_due(name, step, last) for name in self._configs)

    def missing(self, history: Iterable[Mapping[str, int | float]], step: int, last: bool) -> bool:
        """True where an evaluation is due at a step but not in a run's metrics."""
        done = any(line["step"] == step and _SECONDS in line for line in history)
        return self.due(step, last=last) and not done

    def _is_due(self, name: str, step: int, last: bool) -> bool:
        return last or step % self._configs[name].every_steps == 0

    def run(
        self, params: PyTree, step: int, writer: MetricWriter, *, last: bool
    ) -> dict[str, float]:
        """Runs the evaluators that are due, writes their values, and returns the numbers."""
        numbers: dict[str, float] = {}
        began = time.monotonic()
        for name, evaluator in self._evaluators.items():
            if self._is_due(name, step, last):
                with naming(f"evaluator {name!r} at step {step}"):
                    numbers |= self._run(name, evaluator, params, step, writer)
        # Written last: `missing` takes it as the mark of a complete evaluation.
        writer.scalars(step, {_SECONDS: time.monotonic() - began})
        return numbers

    def _run(
        self, name: str, evaluator: Evaluator, params: PyTree, step: int, writer: MetricWriter
    ) -> dict[str, float]:
        numbers: dict[str, float] = {}
        # Pictures of an evaluator named after its kind have plain names.
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
    """Adds a prefix to messages of errors caused by user input or the environment."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error
    except (OSError, jax.errors.JaxRuntimeError) as error:
        error.add_note(prefix)
        raise
