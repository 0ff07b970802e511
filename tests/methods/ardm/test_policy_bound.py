"""Likelihoods by policies, and generation, against enumeration of a table's model."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.data.base import Splits, fingerprint_of
from darl_jax.evaluators.base import Context
from darl_jax.evaluators.integer_likelihood import IntegerLikelihoodConfig, cells_of
from darl_jax.generation.integers import IntegerGenerator, orders
from darl_jax.methods.ardm.method import Draw
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import graph_definition, parameters
from tests.methods.ardm.test_bound import KINDS, made
from tests.methods.ardm.toy_table import ORDERS, POSITIONS, SHAPE, all_examples


def parallel_bits(exact, x, policy) -> float:
    """Mean over all orders of the bits/dim of the model that generates by a policy."""
    per_order = [
        sum(exact.in_order(x[:, 0], order, stage, policy[stage]) for stage in range(len(policy)))
        for order in ORDERS
    ]
    return -float(np.mean(per_order)) / (POSITIONS * math.log(2))


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[4]])
def test_cells_of_a_policy_have_the_bound_of_its_model_for_their_mean(kind):
    method, model, exact = made(kind)
    x = all_examples(method.levels)[11]
    policy = np.array([[0, 1], [0, 3]][: method.num_stages])
    cells = cells_of(policy, POSITIONS)
    draws = [(cell, order) for cell, order in itertools.product(range(len(cells.step)), ORDERS)]
    which = np.array([cell for cell, _ in draws])
    draw = Draw(
        jnp.array([order for _, order in draws]), jnp.asarray(cells.step[which]),
        jnp.asarray(cells.stage[which]),
    )  # fmt: skip
    values = jnp.broadcast_to(x, (len(draws), *SHAPE))
    bits = np.float64(method.unknown_bits(model, values, draw)) * cells.weight[which]
    assert bits.mean() == pytest.approx(parallel_bits(exact, x, policy), rel=2e-6)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Every example of a table as a split."""

    levels: int
    dataset = split = "all"
    class_names = ()
    in_memory = True

    def __len__(self):
        return self.levels**POSITIONS

    def fingerprint(self):
        return fingerprint_of(str(self.levels))

    def eval_examples(self, index):
        return {"value": all_examples(self.levels)[index].astype(np.uint8)}

    def labels(self, index):
        return np.full(len(index), -1, np.int32)

    def describe(self, index):
        return str(index)

    def train_examples(self, index, epoch, seed):
        del epoch, seed
        return self.eval_examples(index)


def measured(method, model, **keys) -> dict[str, float]:
    split = Examples(method.levels)
    context = Context(
        method=method, graphdef=graph_definition(method.init), data=method.data,
        splits=Splits(split, split), batch_size=32, mesh=make_mesh(MeshConfig()),
        key=jax.random.key(4), initial_params=lambda: None,
    )  # fmt: skip
    evaluator = IntegerLikelihoodConfig(**keys).build(context)
    return dict(evaluator.run(parameters(model), 0))


def test_measured_likelihoods_are_the_exact_ones_within_their_standard_errors():
    method, model, exact = made({"branching": 2})
    found = measured(method, model, draws=30, budgets=(2,), policy="even", exact=9)
    one_by_one = np.tile(np.arange(POSITIONS), (2, 1))
    policies = {"": one_by_one, "/4_calls": np.array([[0, 2], [0, 2]])}
    examples = all_examples()
    for name, policy in policies.items():
        bound = np.mean([parallel_bits(exact, x, policy) for x in examples])
        error = found[f"standard_error{name}"]
        assert abs(found[f"bits_per_dim{name}"] - bound) < 4 * error
        assert 0.0 < error < 0.04 * bound
    assert found["bits_per_dim"] < found["bits_per_dim/4_calls"]
    # One order of each record: somewhere among those that there are.
    totals = [
        [sum(exact.in_order(x[:, 0], order, stage) for stage in range(2)) for order in ORDERS]
        for x in examples
    ]
    bits = -np.array(totals) / (POSITIONS * math.log(2))
    assert bits.min() < found["exact_bits_per_dim"] < bits.max()
    assert found["exact_standard_error/4_calls"] > 0


def test_a_budget_beyond_the_steps_and_another_method_are_refused():
    method, model, _ = made({})
    with pytest.raises(ValueError, match="budgets: 5 calls cannot make 4 steps"):
        measured(method, model, budgets=(5,))


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[3], KINDS[4]])
def test_generated_examples_have_the_models_distribution_and_no_value_outside_the_data(kind):
    """Two calls a stage, for random orders: the mean over orders of the parallel model."""
    method, model, exact = made(kind)
    policy = np.tile([0, 2], (method.num_stages, 1))
    generator = IntegerGenerator(
        graph_definition(method.init), method, policy, mesh=make_mesh(MeshConfig())
    )
    number = 4000
    nothing = np.zeros((number, *SHAPE), np.int32)
    made_values = np.concatenate([*generator.batches(
        parameters(model), jax.random.key(1), np.arange(number), nothing,
        np.zeros(nothing.shape, bool), batch_size=number,
    )])[..., 0]  # fmt: skip
    assert made_values.max() < method.levels
    # The share of each value at the first position.
    want = np.zeros(method.levels)
    for x in all_examples(method.levels):
        for order in ORDERS[::4]:
            stages = range(method.num_stages)
            nats = sum(exact.in_order(x[:, 0], order, stage, policy[stage]) for stage in stages)
            want[x[0, 0]] += math.exp(nats) / len(ORDERS[::4])
    share = np.bincount(made_values[:, 0], minlength=method.levels) / number
    np.testing.assert_allclose(share, want, atol=0.06)


def test_known_positions_stay_and_samples_do_not_depend_on_the_batches():
    method, model, _ = made({"branching": 2})
    generator = IntegerGenerator(
        graph_definition(method.init), method, np.tile(np.arange(POSITIONS), (2, 1)),
        mesh=make_mesh(MeshConfig()),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    given = all_examples()[rng.integers(0, 81, 10)]
    known = rng.random(given.shape) < 0.5
    calls = []
    runs = [
        np.concatenate([*generator.batches(
            parameters(model), jax.random.key(2), np.arange(10), given, known, batch_size=size,
            progress=calls.append,
        )])
        for size in (10, 4)
    ]  # fmt: skip
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0][known], given[known])
    assert calls == [*range(1, 9), *range(1, 25)]
    keys = jax.random.split(jax.random.key(0), 10)
    drawn = np.asarray(orders(keys, jnp.asarray(known), 2))
    for row in range(10):
        first = drawn[0, row][known[row].ravel()]
        assert sorted(first) == [*range(known[row].sum())]
        assert sorted(drawn[1, row]) == [*range(POSITIONS)]
    assert (drawn[0] != drawn[1]).any()
    assert nnx.split(model)[1]
