"""Weighted k-nearest neighbors on frozen features, at every depth.

An image gets the label that the most similar images of a bank vote for (Wu et al. 2018, arXiv
1805.01978; DINO's evaluation, arXiv 2104.14294). It measures how linearly accessible features are
without training, beside the probes of Figure 8b.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32, PyTree

from darl_jax.data.base import some_records
from darl_jax.evaluators.base import (
    Context,
    Evaluator,
    EvaluatorConfig,
    HostBatches,
    best_block,
    image_method,
    labeled,
)
from darl_jax.evaluators.features import pooled_blocks, reader
from darl_jax.methods.transfer.probes import block_name
from darl_jax.nn.mesh_axes import BATCH_AXES
from darl_jax.nn.readout import POOLINGS
from darl_jax.training.sharding import batch_sharding, replicated

_SIMILARITIES = 2**24  # that each device computes at once, 64 MB


@dataclasses.dataclass(frozen=True)
class KnnConfig(EvaluatorConfig):
    """Config of k-NN; the defaults are DINO's, except for the bank's size.

    Attributes:
      neighbors: number of neighbors that vote.
      temperature: a neighbor's vote is exp(cosine similarity / temperature).
      max_bank: number of training records in the bank, the first of a fixed permutation. Host
        memory holds their features of every block, each device those of one block.
      pooling: of a block's tokens, one of readout.POOLINGS.
      mask: the backbone's attention, 'causal' or 'full'.
    """

    backbone_only: ClassVar[bool] = True

    kind: str = "knn"
    neighbors: int = 20
    temperature: float = 0.07
    max_bank: int = 50_000
    pooling: str = "mean"
    mask: Literal["causal", "full"] = "causal"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(neighbors=1, max_bank=self.neighbors)
        if not self.temperature > 0.0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is unknown; choose from {POOLINGS}")

    def build(self, context: Context) -> "Knn":
        """Takes the training split as the bank and the validation split as queries."""
        image_method(context.method, self.kind)
        bank = some_records(labeled(context.splits.train), self.max_bank)
        if len(bank) < self.neighbors:
            raise ValueError(
                f"neighbors={self.neighbors} must not be more than the {len(bank)} records of the "
                "training split"
            )
        queries = labeled(context.splits.validation)
        return Knn(self, context, bank=context.batches(bank), queries=context.batches(queries))


class Knn(Evaluator):
    """Accuracy of weighted k-NN on each block's output.

    Settled here: features are centered by the bank's mean before they are scaled to unit length.
    Outputs of blocks have no norm, and all images have much in common: with a model of width 128
    two CIFAR-10 images had cosine similarities of 0.66 to 0.87 on average, and 0 after centering.
    The closer these are to 1, the more uniform the votes. Accuracy did not gain by it there: the
    difference was below two standard errors of 0.01.
    """

    def __init__(
        self, config: KnnConfig, context: Context, *, bank: HostBatches, queries: HostBatches
    ):
        self._config, self._mesh = config, context.mesh
        self._bank, self._queries = bank, queries
        blocks = pooled_blocks(context, config.kind, pooling=config.pooling, mask=config.mask)
        self._read = reader(context, blocks)

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, float]]:
        """Yields accuracy/block_01 and so on, from one pass over the bank and the queries.

        Raises:
          ValueError: the bank has too few labeled examples, or there is no query.
        """
        del step
        bank = self._read(params, self._bank)
        if len(bank.labels) < self._config.neighbors:
            raise ValueError(
                f"neighbors={self._config.neighbors} must not be more than the "
                f"{len(bank.labels)} labeled examples of the bank"
            )
        queries = self._read(params, self._queries)
        for i in range(len(bank.batches[0])):
            features, of_queries = centered_directions(bank.block(i), queries.block(i))
            predicted = nearest_labels(
                features,
                bank.labels,
                of_queries,
                neighbors=self._config.neighbors,
                temperature=self._config.temperature,
                mesh=self._mesh,
            )
            accuracy = float(np.mean(predicted == queries.labels))
            yield block_name("accuracy", i + 1), accuracy

    def summary(self, values: Mapping[str, float]) -> str:
        """Accuracy of the best block."""
        return ", ".join(best_block(values))


def centered_directions(
    bank: Float32[np.ndarray, "row width"], queries: Float32[np.ndarray, "query width"]
) -> tuple[Float32[np.ndarray, "row width"], Float32[np.ndarray, "query width"]]:
    """Subtracts the bank's mean from both, and scales rows to length 1."""
    mean = np.mean(bank, axis=0, dtype=np.float64).astype(np.float32)

    def direction(x: Float32[np.ndarray, "n width"]) -> Float32[np.ndarray, "n width"]:
        x = x - mean
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.float32(1e-12))

    return direction(bank), direction(queries)


def nearest_labels(
    bank: Float32[np.ndarray, "row width"],
    labels: Int[np.ndarray, " row"],
    queries: Float32[np.ndarray, "query width"],
    *,
    neighbors: int,
    temperature: float,
    mesh: Mesh,
) -> Int[np.ndarray, " query"]:
    """Class with most votes for each query: exp(similarity / temperature) of each neighbor.

    Queries are sharded over the mesh, and the bank is replicated. Of equally similar rows the first
    one is the neighbor, of equal votes the smaller label wins.

    Args:
      bank: rows of length 1.
      labels: of the bank's rows, from 0.
      queries: rows of length 1.
      neighbors: number of votes, at most the number of rows.
    """
    whole, split = replicated(mesh), batch_sharding(mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    on_each = min(max(1, _SIMILARITIES // len(bank)), math.ceil(len(queries) / shards))
    at_once = shards * on_each
    bank_, labels_ = _put(bank, whole), _put(labels.astype(np.int32), whole)
    vote = _voting(neighbors, temperature, int(labels.max()) + 1, mesh)
    predicted = []
    for start in range(0, len(queries), at_once):
        some = queries[start : start + at_once]
        padded = np.pad(some, ((0, at_once - len(some)), (0, 0)))
        predicted.append(np.asarray(vote(bank_, labels_, _put(padded, split)))[: len(some)])
    return np.concatenate(predicted)


def _put(x: np.ndarray, sharding: NamedSharding) -> Array:
    """Global array from a copy on every process."""
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


@functools.cache  # one program for all blocks, whose features have one shape
def _voting(
    neighbors: int, temperature: float, num_classes: int, mesh: Mesh
) -> Callable[[Array, Array, Array], Any]:
    def vote(
        bank: Float[Array, "row width"],
        labels: Int32[Array, " row"],
        queries: Float[Array, "query width"],
    ) -> Int32[Array, " query"]:
        similarity = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
        similarity, index = jax.lax.top_k(similarity, neighbors)
        weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
        votes = jnp.zeros((len(queries), num_classes))
        votes = votes.at[jnp.arange(len(queries))[:, None], labels[index]].add(weight)
        return jnp.argmax(votes, axis=1).astype(jnp.int32)

    # Each device sorts its own queries; without shard_map XLA sorts all of them on each.
    rows = PartitionSpec(BATCH_AXES)
    specs = PartitionSpec(), PartitionSpec(), rows
    mapped = jax.shard_map(vote, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return jax.jit(mapped, out_shardings=replicated(mesh))
