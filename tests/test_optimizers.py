"""AdamW against its paper's formula in float64, and the shape of the learning rate over a run."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darl_jax import optimizers
from darl_jax.optimizers import OptimizerConfig


def _parameters(rng: np.random.Generator) -> dict:
    return {
        "sos": rng.normal(size=(1, 4)),
        "blocks": {  # stacked: the leading axis is the depth
            "mlp": {"kernel": rng.normal(size=(2, 4, 3)), "bias": rng.normal(size=(2, 3))},
            "norm": {"scale": rng.normal(size=(2, 4)), "bias": rng.normal(size=(2, 4))},
        },
        "positions": {"embedding": rng.normal(size=(9, 4))},
        "head": {"kernel": rng.normal(size=(4, 5)), "bias": rng.normal(size=(5,))},
    }


DECAYS = {
    "sos": False,
    "blocks": {"mlp": {"kernel": True, "bias": False}, "norm": {"scale": False, "bias": False}},
    "positions": {"embedding": False},
    "head": {"kernel": True, "bias": False},
}


def _adamw_in_float64(
    params: dict, gradients: list[dict], rates: list[float], config: OptimizerConfig
) -> dict:
    """Algorithm 2 of Loshchilov & Hutter 2019, the decay multiplied by the step's rate."""
    leaves, structure = jax.tree.flatten(params)
    decays = jax.tree.leaves(DECAYS)
    leaves = [leaf.astype(np.float64) for leaf in leaves]
    first = [np.zeros_like(leaf) for leaf in leaves]
    second = [np.zeros_like(leaf) for leaf in leaves]
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        flat = [leaf.astype(np.float64) for leaf in jax.tree.leaves(gradient)]
        norm = math.sqrt(sum(float(np.sum(leaf**2)) for leaf in flat))
        scale = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for i, leaf in enumerate(flat):
            first[i] = config.b1 * first[i] + (1 - config.b1) * scale * leaf
            second[i] = config.b2 * second[i] + (1 - config.b2) * (scale * leaf) ** 2
            m = first[i] / (1 - config.b1**t)
            v = second[i] / (1 - config.b2**t)
            decay = config.weight_decay * leaves[i] if decays[i] else 0.0
            leaves[i] = leaves[i] - rate * (m / (np.sqrt(v) + config.eps) + decay)
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_adamw_follows_the_formula_over_ten_steps(clip_norm: float) -> None:
    # Norms of these gradients go from about 1 to 20, so that some are clipped and some are not.
    config = OptimizerConfig(clip_norm=clip_norm, weight_decay=0.3, warmup_steps=3)
    learning_rate = optimizers.learning_rate_schedule(
        config, batch_size=256 * 300, steps_per_epoch=1.0, total_steps=12
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x.astype(np.float32), _parameters(rng))
    scales = np.geomspace(0.1, 2.0, 10)
    gradients = [
        jax.tree.map(lambda x, s=s: (s * x).astype(np.float32), _parameters(rng)) for s in scales
    ]
    optimizer = optimizers.make_optimizer(config, learning_rate)

    @jax.jit
    def step(params: dict, state: optax.OptState, gradient: dict) -> tuple[dict, optax.OptState]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    after = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(after)
    for gradient in gradients:
        after, state = step(after, state, gradient)
    rates = [float(learning_rate(t)) for t in range(10)]
    expected = _adamw_in_float64(params, gradients, rates, config)
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), params, expected)
    assert min(jax.tree.leaves(moved)) > 0.05
    # Ten float32 updates of values of order 1.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6), after, expected)


def test_only_kernels_decay_stacked_or_not() -> None:
    assert optimizers.weight_decay_mask(_parameters(np.random.default_rng(0))) == DECAYS


def test_without_gradients_kernels_shrink_by_rate_times_decay_and_nothing_else_moves() -> None:
    params = jax.tree.map(jnp.ones_like, _parameters(np.random.default_rng(0)))
    optimizer = optimizers.make_optimizer(OptimizerConfig(), 0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    expected = jax.tree.map(
        lambda x, decays: -0.1 * 0.05 * decays * np.ones(x.shape), params, DECAYS
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)


def test_rate_of_table_8_rises_for_forty_epochs_then_falls_along_half_a_cosine() -> None:
    steps_per_epoch = 312  # 1,281,167 images // 4096
    total = 400 * steps_per_epoch
    warmup = 40 * steps_per_epoch
    rate = optimizers.learning_rate_schedule(
        OptimizerConfig(),
        batch_size=4096,
        steps_per_epoch=float(steps_per_epoch),
        total_steps=total,
    )
    peak = 2.4e-3  # 1.5e-4 * 4096 / 256
    at = {
        0: 0.0,
        warmup // 2: peak / 2,
        warmup: peak,
        (warmup + total) // 2: peak / 2,
        warmup + (total - warmup) // 3: peak * 0.75,
        total: 0.0,
        total + 100: 0.0,
    }
    for step, expected in at.items():
        assert float(rate(step)) == pytest.approx(expected, rel=2e-6, abs=1e-9), step
        assert float(jax.jit(rate)(jnp.int32(step))) == pytest.approx(expected, rel=2e-6, abs=1e-9)


def test_warmup_longer_than_the_run_only_rises() -> None:
    config = OptimizerConfig(base_learning_rate=1.0, warmup_epochs=40.0)
    rate = optimizers.learning_rate_schedule(
        config, batch_size=256, steps_per_epoch=312.0, total_steps=3
    )
    np.testing.assert_allclose([rate(t) for t in range(4)], np.arange(4) / (40 * 312), rtol=1e-6)


def test_warmup_steps_win_over_epochs_and_may_be_none_at_all() -> None:
    config = OptimizerConfig(base_learning_rate=1.0, warmup_epochs=40.0, warmup_steps=0)
    rate = optimizers.learning_rate_schedule(
        config, batch_size=256, steps_per_epoch=312.0, total_steps=8
    )
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 8))
    np.testing.assert_allclose([rate(t) for t in range(9)], expected, atol=1e-7)


def test_a_fraction_of_an_epoch_counts_in_the_warmup() -> None:
    config = OptimizerConfig(base_learning_rate=1.0, warmup_epochs=0.5)
    rate = optimizers.learning_rate_schedule(
        config, batch_size=256, steps_per_epoch=7.2, total_steps=100
    )
    assert float(rate(2)) == pytest.approx(0.5)
    assert float(rate(4)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_learning_rate", -1.0),
        ("weight_decay", -0.1),
        ("clip_norm", -1.0),
        ("warmup_epochs", -1.0),
        ("warmup_steps", -1),
        ("b1", 1.0),
        ("b2", -0.1),
        ("eps", 0.0),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{key} must be .* got"):
        OptimizerConfig(**{key: value})
