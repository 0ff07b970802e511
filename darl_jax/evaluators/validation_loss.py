"""Validation loss: the method's metrics on held-out examples, each counted exactly once."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from darl_jax.evaluators.base import (
    Context,
    Evaluator,
    EvaluatorConfig,
    HostBatches,
    best_block,
    outputs,
)
from darl_jax.methods.base import Batch, Metrics, check_inputs
from darl_jax.training.sharding import replicated


@dataclasses.dataclass(frozen=True)
class ValidationLossConfig(EvaluatorConfig):
    """Config of the validation loss."""

    kind: str = "validation_loss"

    def build(self, context: Context) -> "ValidationLoss":
        """Takes the validation split."""
        method = context.method
        check_inputs(method.inputs, context.data.features, f"objective.name={method.name!r}")
        if not len(context.splits.validation):
            raise ValueError("the validation split is empty; name one that is not")
        return ValidationLoss(context, context.batches(context.splits.validation))


class ValidationLoss(Evaluator):
    """Means of the method's metrics over all examples, with the same noise each time."""

    def __init__(self, context: Context, batches: HostBatches):
        def metrics(params: PyTree, batch: Batch, key: PRNGKeyArray) -> Metrics:
            # Folded with the batch's first record, not with the step: losses at two steps differ
            # by the parameters alone.
            end = np.iinfo(np.int32).max
            first = jnp.min(batch["index"], where=batch["mask"], initial=end)
            model = nnx.merge(context.graphdef, params)
            return context.method.validate(model, batch, jax.random.fold_in(key, first))

        self._metrics = jax.jit(metrics, out_shardings=replicated(context.mesh))
        self._conclude = context.method.conclude
        self._batches, self._key, self._mesh = batches, context.key, context.mesh

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, float]]:
        """Yields the mean of each metric, `loss` among them, then the method's conclusions.

        A metric without values is left out.
        The squared error does not depend on the batch size; diffusion draws noise by the batch, so
        another size is another draw.

        Raises:
          ValueError: there is no example that counts.
        """
        del step
        total: dict[str, Average] = {}
        for metrics in outputs(self._metrics, params, self._batches, self._mesh, self._key):
            for name, value in metrics.items():
                # In float64: a float32 count of patches saturates at 2^24, 85 thousand images.
                value = Average(total=np.float64(value.total), count=np.float64(value.count))
                total[name] = total[name].merge(value) if name in total else value
        if not total or not total["loss"].count:
            raise ValueError(
                "the validation split holds no example that counts; name one that does (and that "
                "has labels, where labels are learned)"
            )
        means = {name: float(value.compute()) for name, value in total.items() if value.count}
        yield from means.items()
        yield from self._conclude(means).items()

    def summary(self, values: Mapping[str, float]) -> str:
        """Loss and accuracies; of those by block the best one."""
        found = [f"loss {values['loss']:.5f}"]
        found += [
            f"{name.replace('_', ' ')} {values[name]:.4f}"
            for name in ("accuracy", "top5_accuracy")
            if name in values
        ]
        return ", ".join(found + best_block(values))
