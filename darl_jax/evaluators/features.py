"""Features of labeled images from a frozen model, for evaluators that read them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PyTree

from darl_jax.evaluators.base import Context, HostBatches, image_method, outputs
from darl_jax.methods.base import Batch
from darl_jax.nn.attention import Mask
from darl_jax.nn.patches import patchify, standardize
from darl_jax.nn.readout import readout
from darl_jax.training.sharding import replicated


class Features(NamedTuple):
    """Features of labeled examples, by batch."""

    batches: list[Float32[np.ndarray, "block _rows width"]]
    order: Int[np.ndarray, " example"]  # of the labeled rows, by record
    labels: Int[np.ndarray, " example"]  # in that order

    def block(self, index: int) -> Float32[np.ndarray, "example width"]:
        """Features of one block, in order."""
        return np.concatenate([batch[index] for batch in self.batches])[self.order]


def reader(
    context: Context, extract: Callable[[Any, Batch], Float[Array, "block batch width"]]
) -> Callable[[PyTree, HostBatches], Features]:
    """Function that reads `extract(params, batch)` of all labeled examples of a pass.

    It raises ValueError where no example has a label.
    """

    def rows(params: PyTree, batch: Batch) -> tuple[Array, Array, Array, Array]:
        return extract(params, batch), batch["label"], batch["index"], batch["mask"]

    # Replicated: each process has all examples in the same order.
    compiled = jax.jit(rows, out_shardings=replicated(context.mesh))

    def read(params: PyTree, batches: HostBatches) -> Features:
        parts = [*outputs(compiled, params, batches, context.mesh)]
        labels, index, mask = (
            np.concatenate([part[i] for part in parts] or [np.zeros(0, int)]) for i in (1, 2, 3)
        )
        # By record: values must not depend on the distribution of rows over batches and processes.
        order = np.argsort(index, kind="stable")
        order = order[(mask & (labels >= 0))[order]]
        if not len(order):
            raise ValueError(
                "a split whose features are read holds no labeled example; name one that does"
            )
        return Features([part[0] for part in parts], order, labels[order])

    return read


def pooled_blocks(
    context: Context, kind: str, *, pooling: str, mask: Mask
) -> Callable[[PyTree, Batch], Float[Array, "depth batch width"]]:
    """Function from parameters and whole images to every block's pooled output.

    Raises:
      ValueError: the method has no backbone on images, which the evaluator `kind` reads.
    """
    data = image_method(context.method, kind).data

    def extract(params: PyTree, batch: Batch) -> Float[Array, "depth batch width"]:
        backbone = nnx.merge(context.graphdef, params).backbone
        images = standardize(batch["image"], data.mean, data.std)
        size = backbone.config.patch_size
        grid = images.shape[1] // size, images.shape[2] // size
        blocks = backbone(patchify(images, size), mask=mask, grid=grid).blocks
        return readout(blocks, pooling, start_tokens=backbone.config.start_tokens)

    return extract
