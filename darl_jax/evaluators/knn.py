"""Weighted k-nearest neighbors on frozen features, at every depth.

An image gets the label that the most similar images of a bank vote for (Wu et al. 2018, arXiv
1805.01978; DINO's evaluation, arXiv 2104.14294). It measures how linearly accessible features are
without training, beside the probes of Figure 8b.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32, PyTree

from darl_jax.data.base import some_records
from darl_jax.evaluators.base import (
    Context,
    Evaluator,
    EvaluatorConfig,
    HostBatches,
    best_block,
    block_outputs,
    image_method,
    labeled,
    outputs,
)
from darl_jax.methods.base import Batch
from darl_jax.methods.transfer.probes import block_name
from darl_jax.nn.mesh_axes import BATCH_AXES
from darl_jax.nn.readout import POOLINGS, readout
from darl_jax.training.sharding import batch_sharding, replicated

# Similarities are computed in blocks of this size, 64 MB each.
_QUERIES = 1024
_BANK_ROWS = 16384


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
        method = image_method(context.method, self.kind)
        bank = some_records(labeled(context.splits.train), self.max_bank)
        if len(bank) < self.neighbors:
            raise ValueError(
                f"neighbors={self.neighbors} must not be more than the {len(bank)} records of the "
                "training split"
            )
        return Knn(
            self,
            context.graphdef,
            bank_batches=context.batches(bank),
            query_batches=context.batches(labeled(context.splits.validation)),
            mean=method.data.mean,
            std=method.data.std,
            mesh=context.mesh,
        )


class _Examples(NamedTuple):
    """Features of labeled examples, by batch."""

    batches: list[Float32[np.ndarray, "depth _rows width"]]
    order: Int[np.ndarray, " example"]  # of the labeled rows, by record
    labels: Int[np.ndarray, " example"]  # in that order

    def block(self, index: int) -> Float32[np.ndarray, "example width"]:
        """Features of one block, in order."""
        return np.concatenate([batch[index] for batch in self.batches])[self.order]


class Knn(Evaluator):
    """Accuracy of weighted k-NN on each block's output.

    Settled here: features are centered by the bank's mean before they are scaled to unit length.
    Outputs of blocks have no norm, and all images have much in common: with a model of width 128
    two CIFAR-10 images had cosine similarities of 0.66 to 0.87 on average, and 0 after centering.
    The closer these are to 1, the more uniform the votes. Accuracy did not gain by it there: the
    difference was below two standard errors of 0.01.
    """

    def __init__(
        self,
        config: KnnConfig,
        graphdef: nnx.GraphDef,
        *,
        bank_batches: HostBatches,
        query_batches: HostBatches,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mesh: Mesh,
    ):
        def rows(params: PyTree, batch: Batch) -> tuple[Array, Array, Array, Array]:
            backbone = nnx.merge(graphdef, params).backbone
            blocks = block_outputs(backbone, batch, mean=mean, std=std, mask=config.mask)
            features = readout(blocks, config.pooling, start_tokens=backbone.config.start_tokens)
            return features, batch["label"], batch["index"], batch["mask"]

        self._config = config
        self._mesh = mesh
        # Replicated: each process has all examples in the same order.
        self._rows = jax.jit(rows, out_shardings=replicated(mesh))
        self._bank_batches = bank_batches
        self._query_batches = query_batches

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, float]]:
        """Yields accuracy/block_01 and so on, from one pass over the bank and the queries.

        Raises:
          ValueError: the bank has too few labeled examples, or there is no query.
        """
        del step
        bank = self._examples(self._bank_batches, params)
        if len(bank.labels) < self._config.neighbors:
            raise ValueError(
                f"neighbors={self._config.neighbors} must not be more than the "
                f"{len(bank.labels)} labeled examples of the bank"
            )
        queries = self._examples(self._query_batches, params)
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

    def _examples(self, batches: HostBatches, params: PyTree) -> _Examples:
        parts = [*outputs(self._rows, params, batches, self._mesh)]
        labels, index, mask = (
            np.concatenate([part[i] for part in parts] or [np.zeros(0, int)]) for i in (1, 2, 3)
        )
        # By record: ties must not depend on the distribution of rows over batches and processes.
        order = np.argsort(index, kind="stable")
        order = order[(mask & (labels >= 0))[order]]
        if not len(order):
            raise ValueError("a split that k-NN reads holds no labeled example; name one that does")
        return _Examples([part[0] for part in parts], order, labels[order])


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

    Similarities are computed in blocks, keeping the nearest so far. Queries are sharded over the
    mesh, and the bank is replicated. Of equally similar rows the first one is the neighbor, of
    equal votes the smaller label wins.

    Args:
      bank: rows of length 1.
      labels: of the bank's rows, from 0.
      queries: rows of length 1.
      neighbors: number of votes, at most the number of rows.
    """
    whole, split = replicated(mesh), batch_sharding(mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    at_once = -(-min(_QUERIES, len(queries)) // shards) * shards
    rows = min(_BANK_ROWS, len(bank))
    padding = -len(bank) % rows
    bank_ = _put(np.pad(bank, ((0, padding), (0, 0))).reshape(-1, rows, bank.shape[1]), whole)
    padded_labels = np.pad(labels.astype(np.int32), (0, padding), constant_values=-1)
    labels_ = _put(padded_labels.reshape(-1, rows), whole)
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
        bank: Float[Array, "block row width"],
        labels: Int32[Array, "block row"],
        queries: Float[Array, "query width"],
    ) -> Int32[Array, " query"]:
        def keep_nearest(
            nearest: tuple[Array, Array], block: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], None]:
            features, of_block = block
            similarity = jnp.matmul(queries, features.T, precision=jax.lax.Precision.HIGHEST)
            similarity = jnp.where(of_block >= 0, similarity, -jnp.inf)  # padding
            # The nearest so far come first: they have the smaller row numbers.
            similarity = jnp.concatenate([nearest[0], similarity], axis=1)
            of_block = jnp.broadcast_to(of_block, (len(queries), *of_block.shape))
            of_all = jnp.concatenate([nearest[1], of_block], axis=1)
            similarity, index = jax.lax.top_k(similarity, neighbors)
            return (similarity, jnp.take_along_axis(of_all, index, axis=1)), None

        shape = (len(queries), neighbors)
        none = jnp.full(shape, -jnp.inf), jnp.full(shape, -1)
        (similarity, of_nearest), _ = jax.lax.scan(keep_nearest, none, (bank, labels))
        weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
        votes = jnp.zeros((len(queries), num_classes))
        votes = votes.at[jnp.arange(len(queries))[:, None], of_nearest].add(weight)
        return jnp.argmax(votes, axis=1).astype(jnp.int32)

    # Each device sorts its own queries; without shard_map XLA sorts all of them on each.
    rows = PartitionSpec(BATCH_AXES)
    specs = PartitionSpec(), PartitionSpec(), rows
    mapped = jax.shard_map(vote, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return jax.jit(mapped, out_shardings=replicated(mesh))
