"""Bits per dimension of autoregressive diffusion: the bound, under policies, and of one order."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from darl_jax.data.base import some_records
from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig, outputs
from darl_jax.methods.ardm.method import ARDM, Draw
from darl_jax.methods.ardm.policies import check_calls, make_policy
from darl_jax.methods.base import Batch, Method, check_inputs
from darl_jax.training.sharding import replicated

_EXACT = 2**20  # above the numbers of policies: exact values have orders of their own


@dataclasses.dataclass(frozen=True)
class IntegerLikelihoodConfig(EvaluatorConfig):
    """Config of the likelihood of integers.

    Attributes:
      examples: held-out records that are measured; 0 for all.
      draws: steps drawn for each of them, spread evenly over all steps and stages.
      budgets: calls for each stage of policies whose bound is measured too.
      policy: 'best', from the losses of single steps in the checkpoint, or 'even'.
      exact: records whose likelihood is measured in one order exactly, by as many calls as there
        are steps, and as many as each budget has; 0 for none.
    """

    kind: str = "integer_likelihood"
    examples: int = 0
    draws: int = 1
    budgets: tuple[int, ...] = ()
    policy: Literal["best", "even"] = "best"
    exact: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(examples=0, draws=1, exact=0)

    def build(self, context: Context) -> "IntegerLikelihood":
        """Chooses the records."""
        return IntegerLikelihood(self, context)


class Cells(NamedTuple):
    """Steps of a bound, each as likely as any: E of weight times a step's unknown bits is it."""

    stage: Int[np.ndarray, " cell"]
    step: Int[np.ndarray, " cell"]
    weight: Float[np.ndarray, " cell"]


def cells_of(policy: Int[np.ndarray, "stage calls"], steps: int) -> Cells:
    """Cells of the bound under a policy (section 4.3 of the method): S n (h - l) / (D - l).

    The policy of one step a call gives the bound itself, S D / (D - t).
    """
    stages, calls = policy.shape
    lengths = np.diff(policy, axis=1, append=steps)
    weight = stages * calls * lengths / (steps - policy)
    stage = np.repeat(np.arange(stages), calls)
    return Cells(stage.astype(np.int32), policy.reshape(-1).astype(np.int32), weight.reshape(-1))


class IntegerLikelihood(Evaluator):
    """Measures held-out records with the same orders and steps each time.

    Raises:
      ValueError: the method has no such likelihood, a budget does not fit, or there is no record.
    """

    def __init__(self, config: IntegerLikelihoodConfig, context: Context):
        self._config, self._context = config, context
        self._method = method = integer_method(context.method)
        check_inputs(method.inputs, context.data.features, f"objective.name={method.name!r}")
        for calls in config.budgets:
            try:
                check_calls(calls, method.positions)
            except ValueError as error:
                raise ValueError(f"budgets: {error}") from error
        held_out = context.splits.validation
        if not len(held_out):
            raise ValueError("the validation split is empty; name one that is not")
        self._records = some_records(held_out, config.examples or len(held_out))
        self._exact_records = some_records(held_out, config.exact)

        def drawn(
            params: PyTree, batch: Batch, key: PRNGKeyArray, stage: Array, step: Array
        ) -> tuple[Array, Array, Array]:
            draw = self._draw(batch, key, stage[batch["index"]], step[batch["index"]])
            model = nnx.merge(context.graphdef, params)
            bits = method.unknown_bits(model, self._values(batch), draw)
            return bits, batch["index"], batch["mask"]

        def between(
            params: PyTree, batch: Batch, key: PRNGKeyArray, stage: Array, ends: Array
        ) -> tuple[Array, Array, Array]:
            every = jnp.full(len(batch["index"]), stage)
            draw = self._draw(batch, key, every, jnp.full_like(every, ends[0]))
            bits = method.position_bits(
                nnx.merge(context.graphdef, params), self._values(batch), draw
            )
            made = (draw.order >= ends[0]) & (draw.order < ends[1])
            return jnp.sum(jnp.where(made, bits, 0.0), axis=1), batch["index"], batch["mask"]

        layout = replicated(context.mesh)
        self._drawn = jax.jit(drawn, out_shardings=layout)
        self._between = jax.jit(between, out_shardings=layout)
        self._losses = jax.jit(jnp.abs, out_shardings=layout)

    def _values(self, batch: Batch) -> Int[Array, "batch ..."]:
        return self._method.integers(batch[self._method.data.integers.feature])

    def _draw(
        self, batch: Batch, key: PRNGKeyArray, stage: Int[Array, " batch"], step: Array
    ) -> Draw:
        """Orders by record, so that they do not depend on the batches."""
        positions = self._method.positions

        def order(index: Int[Array, ""]) -> Int[Array, " position"]:
            return jnp.argsort(jax.random.uniform(jax.random.fold_in(key, index), (positions,)))

        return Draw(jax.vmap(order)(batch["index"].astype(jnp.int32)), step, stage)

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, float]]:
        """Yields `bits_per_dim` and its standard error, and those of each budget and exact value.

        A policy of n calls in all stages is `bits_per_dim/n_calls`.
        """
        del step
        positions, stages = self._method.positions, self._method.num_stages
        losses = np.asarray(jax.device_get(self._losses(params["loss_per_step"])))
        one_by_one = np.tile(np.arange(positions), (stages, 1))
        policies = {"": one_by_one} | {
            f"/{stages * calls}_calls": make_policy(self._config.policy, losses, calls)
            for calls in self._config.budgets
        }
        for number, (name, policy) in enumerate(policies.items()):
            key = jax.random.fold_in(self._context.key, number)
            mean, error = self._bound(params, cells_of(policy, positions), key)
            yield f"bits_per_dim{name}", mean
            yield f"standard_error{name}", error
        if not self._config.exact:
            return
        for name, policy in policies.items():
            values = self._exact(params, policy)
            yield f"exact_bits_per_dim{name}", float(np.mean(values))
            if len(values) > 1:
                spread = float(np.std(values, ddof=1) / np.sqrt(len(values)))
                yield f"exact_standard_error{name}", spread

    def _bound(self, params: PyTree, cells: Cells, key: PRNGKeyArray) -> tuple[float, float]:
        """Mean over the draws and its standard error.

        Draw r of R takes a cell from the r-th of R equal parts of all cells, so that all steps are
        there, whatever the number of records. The error is that of pairs of neighboring parts.
        """
        shape = self._config.draws, len(self._records)
        total = shape[0] * shape[1]
        rng = np.random.default_rng(0)
        part = rng.permutation(total).reshape(shape)
        cell = ((part + rng.random(shape)) * (len(cells.step) / total)).astype(np.int64)
        found = np.full(total, np.nan)
        for row in range(shape[0]):
            arrays = jnp.asarray(cells.stage[cell[row]]), jnp.asarray(cells.step[cell[row]])
            batches = self._context.batches(self._records)
            arguments = jax.random.fold_in(key, row), *arrays
            for bits, index, mask in outputs(
                self._drawn, params, batches, self._context.mesh, *arguments
            ):
                index = index[mask]
                weighted = bits[mask].astype(np.float64) * cells.weight[cell[row][index]]
                found[part[row][index]] = weighted
        # Records that cannot be decoded have no value.
        found = found[~np.isnan(found)]
        pairs = found[: len(found) // 2 * 2].reshape(-1, 2)
        return float(np.mean(found)), float(np.sqrt(np.sum(np.diff(pairs) ** 2))) / len(found)

    def _exact(
        self, params: PyTree, policy: Int[np.ndarray, "stage calls"]
    ) -> Float[np.ndarray, " record"]:
        """Bits/dim of records, each in the order that its number draws."""
        total = np.zeros(len(self._exact_records))
        there = np.zeros(len(total), bool)
        batches = self._context.batches(self._exact_records)
        for stage, starts in enumerate(policy):
            for low, high in zip(
                starts, np.append(starts[1:], self._method.positions), strict=True
            ):
                ends = jnp.array([low, high], jnp.int32)
                key = jax.random.fold_in(self._context.key, _EXACT + stage)
                arguments = key, jnp.int32(stage), ends
                for bits, index, mask in outputs(
                    self._between, params, batches, self._context.mesh, *arguments
                ):
                    total[index[mask]] += bits[mask]
                    there[index[mask]] = True
        return total[there]

    def summary(self, values: Mapping[str, float]) -> str:
        """Means with their standard errors."""
        return ", ".join(
            f"{name} {value:.4f} ± {values[error]:.4f}"
            for name, value in values.items()
            if (error := name.replace("bits_per_dim", "standard_error")) in values and error != name
        )


def integer_method(method: Method) -> ARDM:
    """Checks that a method is autoregressive diffusion. Raises ValueError."""
    if not isinstance(method, ARDM):
        raise ValueError(
            f"this reads a model of integers, and config.objective.name={method.name!r} makes "
            "none; 'ardm' does"
        )
    return method
