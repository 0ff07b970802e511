"""Generation and completion of integers by autoregressive diffusion (algorithms 1 and 3)."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray, PyTree

from darl_jax.methods.ardm.method import ARDM, ARDMModel
from darl_jax.training.sharding import replicated


class IntegerGenerator:
    """Generates examples by a policy, stage by stage.

    Args:
      policy: first steps of each stage's calls (methods/ardm/policies.py).
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[ARDMModel],
        method: ARDM,
        policy: Int[np.ndarray, "stage calls"],
        *,
        mesh: Mesh,
    ):
        self._method, self._policy = method, policy
        self._shards = mesh.shape["data"] * mesh.shape["fsdp"]

        def call(
            params: PyTree, values: Array, known: Array, order: Array, ends: Array, keys: Array
        ) -> Array:
            model = nnx.merge(graphdef, params)
            stage, low, high = ends
            return advance(method, model, values, known, order, stage, (low, high), keys)

        self._call = jax.jit(call, out_shardings=replicated(mesh))
        self._begin = jax.jit(
            lambda keys, known: orders(keys, known, method.num_stages),
            out_shardings=replicated(mesh),
        )

    @property
    def calls(self) -> int:
        """Network calls for an example."""
        return self._policy.size

    def at_once(self, batch_size: int, examples: int) -> int:
        """Examples of a batch: no more than there are, and as many for each device."""
        return -(-min(batch_size, examples) // self._shards) * self._shards

    def batches(
        self,
        params: PyTree,
        key: PRNGKeyArray,
        numbers: Int[np.ndarray, " example"],
        given: Int[np.ndarray, "example ..."],
        known: Bool[np.ndarray, "example ..."],
        *,
        batch_size: int,
        progress: Callable[[int], None] = lambda calls: None,
    ) -> Iterator[Int[np.ndarray, "batch ..."]]:
        """Generates what is not known of each example, in batches.

        Args:
          numbers: of the examples, with which the key draws their noise, whatever the batches.
          given: values of the examples; those that are not known are not read.
          known: which positions are kept.
          progress: is told the number of calls after each one.
        """
        calls, batch_size = 0, self.at_once(batch_size, len(numbers))
        for begin in range(0, len(numbers), batch_size):
            rows = np.arange(begin, begin + batch_size) % len(numbers)  # the last batch is full
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(numbers[rows]))
            kept = jnp.asarray(known[rows])
            values = jnp.where(kept, jnp.asarray(given[rows], jnp.int32), 0)
            order = self._begin(keys, kept)
            for stage, starts in enumerate(self._policy):
                highs = np.append(starts[1:], self._method.positions)
                for low, high in zip(starts, highs, strict=True):
                    ends = jnp.array([stage, low, high], jnp.int32)
                    values = self._call(params, values, kept, order[stage], ends, keys)
                    calls += 1
                    progress(calls)
            yield np.asarray(jax.device_get(values))[: len(numbers) - begin]


def orders(
    keys: Key[Array, " batch"], known: Bool[Array, "batch *shape"], stages: int
) -> Int[Array, "stage batch position"]:
    """An order of each example for each stage: known positions first, the others at random."""
    flat = known.reshape(len(known), -1)

    def order(key: PRNGKeyArray, known: Bool[Array, " position"]) -> Int[Array, " position"]:
        noise = jax.random.uniform(key, known.shape) - 2.0 * known
        return jnp.argsort(jnp.argsort(noise))

    def of_stage(stage: Int[Array, ""]) -> Int[Array, "batch position"]:
        return jax.vmap(order)(jax.vmap(lambda key: jax.random.fold_in(key, stage))(keys), flat)

    return jax.vmap(of_stage)(jnp.arange(stages))


def advance(
    method: ARDM,
    model: ARDMModel,
    values: Int[Array, "batch *shape"],
    known: Bool[Array, "batch *shape"],
    order: Int[Array, "batch position"],
    stage: Int[Array, ""],
    ends: tuple[Int[Array, ""], Int[Array, ""]],
    keys: Key[Array, " batch"],
) -> Int[Array, "batch *shape"]:
    """Values after one call, which draws the positions whose step is in [ends[0], ends[1]).

    Where more positions are known from the beginning than that, the call begins after them, so that
    the step that the network is told is the number of positions that it sees.
    """
    given = jnp.sum(known.reshape(len(known), -1), axis=1)
    begin = jnp.maximum(ends[0], given)
    seen = (order < begin[:, None]).reshape(values.shape)
    made = ((order >= begin[:, None]) & (order < ends[1])).reshape(values.shape)
    every = jnp.full(len(values), stage, jnp.int32)
    outputs = method.network_outputs(model, values, seen, begin + stage * method.positions, every)
    # Numbers of their own for each call; those of the orders are the first ones.
    number = method.num_stages + stage * method.positions + ends[0]
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
    past = method.stages.past(values, every)

    def draw(outputs: Array, past: Array, key: PRNGKeyArray) -> Array:
        return method.outputs.sample(outputs[None], past[None], stage[None], key)[0]

    return jnp.where(made, jax.vmap(draw)(outputs, past, keys), values)
