"""Generated integers during training: images as a picture, text in the log, sound as arrays."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import PyTree

from darl_jax.data.base import some_records
from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig, Value
from darl_jax.evaluators.integer_likelihood import integer_method
from darl_jax.generation.integer_files import picture, texts
from darl_jax.generation.integers import IntegerGenerator
from darl_jax.methods.ardm.policies import check_calls, make_policy
from darl_jax.training.sharding import replicated


@dataclasses.dataclass(frozen=True)
class IntegerSamplesConfig(EvaluatorConfig):
    """Config of generated integers.

    Attributes:
      number: examples from nothing.
      completed: held-out examples whose second half is generated, in row-major order.
      calls: network calls for each stage; 0 for one by one.
      policy: 'best', from the losses of single steps, or 'even'.
    """

    kind: str = "integer_samples"
    number: int = 16
    completed: int = 16
    calls: int = 0
    policy: Literal["best", "even"] = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(number=1, completed=0, calls=0)

    def build(self, context: Context) -> "IntegerSamples":
        """Reads the examples to complete."""
        return IntegerSamples(self, context)


class IntegerSamples(Evaluator):
    """Generates with the same noise each time.

    Raises:
      ValueError: the method makes no integers, or the calls do not fit.
    """

    def __init__(self, config: IntegerSamplesConfig, context: Context):
        self._config, self._context = config, context
        self._method = method = integer_method(context.method)
        if config.calls:
            check_calls(config.calls, method.positions)
        records = some_records(context.splits.validation, config.completed)
        shape = method.data_shape
        self._given = np.zeros((config.number, *shape), np.int32)
        self._known = np.zeros((config.number, *shape), bool)
        if config.completed:
            examples = records.eval_examples(np.arange(len(records), dtype=np.int64))
            originals = method.integers(examples[method.data.integers.feature])
            half = (np.arange(method.positions) < method.positions // 2).reshape(shape)
            self._given = np.concatenate([self._given, originals])
            kept = np.broadcast_to(half, originals.shape)
            self._known = np.concatenate([self._known, kept])
        self._losses = jax.jit(jnp.abs, out_shardings=replicated(context.mesh))

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, Value]]:
        """Yields `samples` and `completions`."""
        method, context, number = self._method, self._context, self._config.number
        losses = np.asarray(jax.device_get(self._losses(params["loss_per_step"])))
        calls = self._config.calls or method.positions
        policy = make_policy(self._config.policy, losses, calls)
        generator = IntegerGenerator(context.graphdef, method, policy, mesh=context.mesh)
        made = generator.batches(
            params, context.key, np.arange(len(self._given)), self._given, self._known,
            batch_size=context.batch_size,
        )  # fmt: skip
        values = method.shown(np.concatenate([*made]))
        for name, part in (("samples", values[:number]), ("completions", values[number:])):
            if not len(part):
                continue
            if method.data.integers.feature == "image":
                yield name, picture(part)
                continue
            yield name, {"values": part}
            if method.data.integers.feature == "text":
                lines = "\n".join(texts(part, method.data))
                logging.info("Step %d: %s:\n%s", step, name, lines)
