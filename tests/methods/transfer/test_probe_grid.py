"""Grids of probes: each is trained as it would be alone, and the best is named."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.transfer import probes
from darl_jax.methods.transfer.probe_model import ProbesConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import (
    AdamWConfig,
    LarsConfig,
    build_optimizer,
    learning_rate_schedule,
)
from darl_jax.training.state import init_state
from darl_jax.training.step import make_train_step
from tests.evaluators.tiny import random_images
from tests.methods_on_images import method

CLASSES = 4
VIT = ViTConfig(width=16, depth=3, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")
RATES, DECAYS = (1e-3, 3e-2, 0.1), (0.0, 0.5)
BATCH = {
    "image": jnp.asarray(random_images(8)),
    "label": jnp.asarray([3, 0, -1, 2, 2, 1, 1, 0], jnp.int32),
    "mask": jnp.arange(8) != 5,
    "replaced": jnp.zeros(8, bool),
    "stop": jnp.zeros(8, bool),
}
schedule = functools.partial(
    learning_rate_schedule, batch_size=8, steps_per_epoch=1.0, total_steps=6
)


def trained(config, **keys):
    """Probes after 4 steps, from the initial parameters of one seed."""
    of = method(ProbesConfig(num_classes=CLASSES, **keys), VIT)
    optimizer = build_optimizer(config, schedule(config), of, schedule)
    state = init_state(of.init, optimizer, jax.random.key(0))
    graphdef = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))[0]
    step = jax.jit(make_train_step(graphdef, of, optimizer))
    for _ in range(4):
        state, _ = step(state, BATCH, jax.random.key(1))
    return state.params["probes"]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("attentive", AdamWConfig(clip_norm=0.05, warmup_epochs=2.0)),
        ("linear", LarsConfig(warmup_epochs=0.0, trust_coefficient=0.1)),
    ],
)
def test_each_probe_of_a_grid_is_trained_as_it_is_alone(kind, config):
    of_grid = trained(config, kind=kind, blocks=(1, 3), learning_rates=RATES, weight_decays=DECAYS)
    wanted = [(1, 0.1, 0.5), (3, 1e-3, 0.0), (3, 3e-2, 0.5)]
    for block, rate, decay in wanted:
        alone = trained(
            type(config)(**vars(config) | {"learning_rate": rate, "weight_decay": decay}),
            kind=kind,
            blocks=(block,),
        )
        index = (block == 3) * 6 + RATES.index(rate) * 2 + DECAYS.index(decay)
        mine = jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], of_grid)
        # Sums in another order, and steps of AdamW that have the size of the rate; running
        # statistics are of size 1, of which float32 has seven digits.
        tolerances = {"rtol": 1e-6, "atol": 2e-4 * rate + 1e-7}
        close = functools.partial(np.testing.assert_allclose, **tolerances)
        jax.tree.map(close, mine, alone)
    kernel = of_grid["classifier"]["kernel"]
    assert len({leaf.tobytes() for leaf in np.asarray(kernel)}) == 12


def test_a_probe_that_is_not_finite_is_left_as_it_is_and_holds_up_no_other():
    of = method(
        ProbesConfig(num_classes=CLASSES, blocks=(2,), kind="attentive", learning_rates=RATES), VIT
    )
    config = AdamWConfig(warmup_epochs=0.0)
    optimizer = build_optimizer(config, schedule(config), of, schedule)
    start = init_state(of.init, optimizer, jax.random.key(0), ema=True)
    graphdef = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))[0]
    step = jax.jit(make_train_step(graphdef, of, optimizer, ema_decay=0.9))

    def after(lost):
        query = start.params["probes"]["query"].at[lost].set(jnp.nan)
        params = start.params | {"probes": start.params["probes"] | {"query": query}}
        before = dataclasses.replace(start, params=params)
        return before, step(before, BATCH, jax.random.key(1))[0]

    def stacks(state):
        return state.params["probes"], state.ema["probes"], state.opt_state

    whole = after(jnp.array([], jnp.int32))[1]
    before, state = after(jnp.array([1]))
    leaves = (jax.tree.leaves(stacks(each)) for each in (state, before, whole))
    for found, old, new in zip(*leaves, strict=True):
        np.testing.assert_array_equal(found[1], old[1])
        for index in (0, 2):
            np.testing.assert_array_equal(found[index], new[index])
            assert (found[index] != old[index]).any()
    jax.tree.map(np.testing.assert_array_equal, state.ema["backbone"], start.ema["backbone"])
    assert (int(state.dropped_updates), int(state.dropped_in_a_row)) == (1, 0)
    of_none = after(jnp.arange(3))[1]
    assert (int(of_none.dropped_updates), int(of_none.dropped_in_a_row)) == (1, 1)


def test_metrics_name_each_probe():
    of = method(
        ProbesConfig(num_classes=CLASSES, blocks=(3,), learning_rates=RATES, weight_decays=(0.1,)),
        VIT,
    )
    model = of.init(nnx.Rngs(0))
    metrics = of.validate(model, BATCH, jax.random.key(0))
    ends = [f"block_03/lr_{rate:g}_wd_0.1" for rate in RATES]
    assert [*metrics] == ["loss", *(f"{of}/{end}" for of in ("loss", "accuracy") for end in ends)]


@pytest.mark.parametrize(("best", "edge"), [(0, True), (1, False), (2, True)])
def test_the_best_of_a_grid_is_named_with_a_warning_at_its_edge(monkeypatch, best, edge):
    warnings = []
    monkeypatch.setattr(probes.logging, "warning", lambda text, *args: warnings.append(text % args))
    of = method(
        ProbesConfig(num_classes=CLASSES, blocks=(2,), learning_rates=RATES, weight_decays=DECAYS),
        VIT,
    )
    values = {
        f"accuracy/block_02/lr_{rate:g}_wd_{decay:g}": 0.9 * (i == best and decay == 0.5)
        for i, rate in enumerate(RATES)
        for decay in DECAYS
    }
    assert of.conclude(values) == {
        "accuracy/block_02": 0.9,
        "best_learning_rate/block_02": RATES[best],
        "best_weight_decay/block_02": 0.5,
    }
    assert bool(warnings) == edge
    if edge:
        assert f"Block 2: the best learning rate, {RATES[best]:g}," in warnings[0]


def test_without_a_grid_there_is_nothing_to_conclude():
    of = method(ProbesConfig(num_classes=CLASSES), VIT)
    assert of.conclude({"accuracy/block_01": 0.5}) == {}
    assert of.variants == ()


def test_a_block_that_the_backbone_does_not_have_is_an_error():
    with pytest.raises(ValueError, match=r"objective\.blocks=\(4,\)"):
        method(ProbesConfig(num_classes=CLASSES, blocks=(4,)), VIT)
