"""The objective on held-out examples, each counted exactly once."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from darl_jax.evaluators.base import HostBatches
from darl_jax.methods import Batch, Metrics, Objective
from darl_jax.training.sharding import global_array, replicated


class ValidationLoss:
    """Means of the objective's metrics over all examples.

    Args:
      graphdef: the model without its parameters.
      objective: gives the metrics; `loss` is one of them.
      batches: one pass over the examples.
      mesh: where the model is.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        objective: Objective,
        batches: HostBatches,
        mesh: Mesh,
    ):
        def metrics(params: PyTree, batch: Batch, key: PRNGKeyArray) -> Metrics:
            # Folded with the batch's first record and not with a step: noise is then the same each
            # time, and the loss at two steps differs by the parameters alone.
            end = np.iinfo(np.int32).max
            first = jnp.min(batch["index"], where=batch["mask"], initial=end)
            model = nnx.merge(graphdef, params)
            return objective.validate(model, batch, jax.random.fold_in(key, first))

        self._metrics = jax.jit(metrics, out_shardings=replicated(mesh))
        self._batches = batches
        self._mesh = mesh

    def run(self, params: PyTree, key: PRNGKeyArray) -> Iterator[tuple[str, float]]:
        """Yields each metric's mean, `loss` among them; one that nothing fell into is left out.

        The squared error's means do not depend on the size of the batches; diffusion draws its
        noise by the batch, so another size is another draw.

        Raises:
          ValueError: there is no example that counts.
        """
        total: dict[str, Average] = {}
        for batch in self._batches():
            metrics = jax.device_get(
                self._metrics(params, global_array(dict(batch), self._mesh), key)
            )
            for name, value in metrics.items():
                # In float64: a float32 count of patches stands still at 2^24, 85 thousand images.
                value = Average(total=np.float64(value.total), count=np.float64(value.count))
                total[name] = total[name].merge(value) if name in total else value
        if not total or not total["loss"].count:
            raise ValueError(
                "the validation split holds no example that counts; name one that does (and that "
                "has labels, where labels are learnt)"
            )
        for name, value in total.items():
            if value.count:
                yield name, float(value.compute())
