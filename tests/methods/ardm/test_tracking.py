"""Running losses of single steps against the loop over examples, and their way through a step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from darl_jax.methods.ardm.tracking import updated
from darl_jax.training.state import graph_definition, init_state
from darl_jax.training.step import make_train_step
from darl_jax.training.trained import only_trained
from tests.methods.ardm.toy_table import POSITIONS, all_examples, table_method


def test_a_batch_is_tracked_like_its_examples_one_after_the_other():
    """Cells with and without a value before, hit by none, one and many examples."""
    rng = np.random.default_rng(0)
    losses = np.where(rng.random((2, 5)) < 0.5, -0.3, rng.random((2, 5)))
    for _ in range(6):
        cell, value = rng.integers(0, 10, 12), rng.random(12)
        counts = rng.random(12) < 0.8
        value[~counts] = np.nan
        want = losses.ravel().copy()
        for c, v in zip(cell[counts], value[counts], strict=True):
            want[c] = v if want[c] < 0 else 0.95 * want[c] + 0.05 * v
        found = updated(*map(jnp.asarray, (np.float32(losses), cell, np.float32(value), counts)))
        losses = want.reshape(losses.shape)
        np.testing.assert_allclose(found, losses, rtol=2e-6)


def batch_of(method, numbers):
    count = len(numbers)
    flags = {"replaced": jnp.zeros(count, bool), "stop": jnp.zeros(count, bool)}
    mask = jnp.arange(count) != 2
    return {"value": jnp.asarray(all_examples()[numbers]), "mask": mask} | flags


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_a_step_tracks_its_losses_and_neither_trains_nor_averages_them(accumulation_steps):
    method = table_method()
    optimizer = only_trained(optax.sgd(0.1), method.trains)
    state = init_state(method.init, optimizer, jax.random.key(0), ema=True)
    batch = batch_of(method, np.arange(0, 72, 12))
    step = make_train_step(
        graph_definition(method.init), method, optimizer,
        accumulation_steps=accumulation_steps, ema_decay=0.9,
    )  # fmt: skip
    key = jax.random.key(5)
    new, _ = jax.jit(step)(state, batch, key)
    model = nnx.merge(graph_definition(method.init), state.params)
    want = np.array(state.params["loss_per_step"])[0]
    keys = jax.random.split(jax.random.fold_in(key, 0), accumulation_steps)
    if accumulation_steps == 1:
        keys = [jax.random.fold_in(key, 0)]
    observed = {}
    for part, part_key in enumerate(keys):
        rows = jax.tree.map(lambda x, part=part: x[part::accumulation_steps], batch)
        found = method.observe(model, rows, part_key)[2]
        for row in range(len(found["cell"])):
            values = (np.asarray(found[name][row]) for name in ("cell", "value", "counts"))
            observed[part + row * accumulation_steps] = tuple(values)
    for number in sorted(observed):
        cell, value, counts = observed[number]
        if counts:
            want[cell] = value if want[cell] < 0 else 0.95 * want[cell] + 0.05 * value
    np.testing.assert_allclose(new.params["loss_per_step"][0], want, rtol=1e-5)
    np.testing.assert_array_equal(new.ema["loss_per_step"], new.params["loss_per_step"])
    tables = (tree["network"]["table"] for tree in (state.params, new.params, new.ema))
    old, trained, averaged = map(np.asarray, tables)
    np.testing.assert_allclose(averaged - old, 0.1 * (trained - old), atol=1e-6)
    assert np.abs(trained - old).max() > 0


def test_a_dropped_update_leaves_the_losses_as_they_were():
    method = table_method()
    optimizer = only_trained(optax.sgd(0.1), method.trains)
    state = init_state(method.init, optimizer, jax.random.key(0))
    table = state.params["network"]["table"] * jnp.nan
    state = dataclasses.replace(state, params=state.params | {"network": {"table": table}})
    step = make_train_step(graph_definition(method.init), method, optimizer)
    new, _ = jax.jit(step)(state, batch_of(method, np.arange(6)), jax.random.key(0))
    assert new.dropped_updates == 1
    np.testing.assert_array_equal(
        new.params["loss_per_step"], state.params["loss_per_step"], strict=True
    )


def test_losses_that_no_example_came_for_are_an_even_share_of_the_bits():
    model = table_method(branching=2).init(nnx.Rngs(0))
    np.testing.assert_allclose(model.losses(), np.log2(3) / (2 * POSITIONS), rtol=1e-6)
