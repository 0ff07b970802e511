"""AdamW and LARS against their formulas in float64, which parameters they move, and the rates."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from darl_jax.config import default_config, load
from darl_jax.training import optimizers
from darl_jax.training.optimizers import AdamWConfig, LarsConfig


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
    params: dict, gradients: list[dict], rates: list[float], config: AdamWConfig
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


def _trained(optimizer: optax.GradientTransformation, params: dict, gradients: list[dict]) -> dict:
    """The parameters after a step for each gradient."""

    @jax.jit
    def step(params: dict, state: optax.OptState, gradient: dict) -> tuple[dict, optax.OptState]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = optimizer.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_adamw_follows_the_formula_over_ten_steps(clip_norm: float) -> None:
    # Norms of these gradients go from about 1 to 20, so that some are clipped and some are not.
    config = AdamWConfig(clip_norm=clip_norm, weight_decay=0.3, warmup_steps=3)
    learning_rate = optimizers.learning_rate_schedule(
        config, batch_size=256 * 300, steps_per_epoch=1.0, total_steps=12
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x.astype(np.float32), _parameters(rng))
    scales = np.geomspace(0.1, 2.0, 10)
    gradients = [
        jax.tree.map(lambda x, s=s: (s * x).astype(np.float32), _parameters(rng)) for s in scales
    ]
    after = _trained(optimizers.make_optimizer(config, learning_rate), params, gradients)
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
    optimizer = optimizers.make_optimizer(AdamWConfig(), 0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    expected = jax.tree.map(
        lambda x, decays: -0.1 * 0.05 * decays * np.ones(x.shape), params, DECAYS
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)


# --- LARS ----------------------------------------------------------------------------------------


def _lars_in_float64(
    params: dict, gradients: list[dict], rates: list[float], config: LarsConfig
) -> dict:
    """You et al. 2017 in the form of MAE's linear evaluation: the rate is outside the buffer."""
    leaves, structure = jax.tree.flatten(params)
    leaves = [np.float64(leaf) for leaf in leaves]
    buffers = [np.zeros_like(leaf) for leaf in leaves]
    for gradient, rate in zip(gradients, rates, strict=True):
        for i, g in enumerate(jax.tree.leaves(gradient)):
            g = g.astype(np.float64)
            if g.ndim > 1:
                g = g + config.weight_decay * leaves[i]
                size, step = np.sqrt(np.sum(leaves[i] ** 2)), np.sqrt(np.sum(g**2))
                if size > 0 and step > 0:
                    g = g * config.trust_coefficient * size / step
            buffers[i] = config.momentum * buffers[i] + g
            leaves[i] = leaves[i] - rate * buffers[i]
    return jax.tree.unflatten(structure, leaves)


def _probe(rng: np.random.Generator) -> dict:
    """As `_parameters`; a kernel that starts at 0 has no size to trust."""
    return {
        "classifier": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
        "zero": {"kernel": np.zeros((2, 2)), "bias": rng.normal(size=2)},
    }


def _probe_gradients(number: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    shapes = _probe(rng)

    def draw(x: np.ndarray) -> np.ndarray:
        return (0.1 * rng.normal(size=x.shape)).astype(np.float32)

    return [jax.tree.map(draw, shapes) for _ in range(number)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_lars_follows_the_formula_while_its_rate_changes(weight_decay: float) -> None:
    config = LarsConfig(weight_decay=weight_decay, trust_coefficient=0.05, warmup_steps=3)
    learning_rate = optimizers.learning_rate_schedule(
        config, batch_size=256 * 10, steps_per_epoch=1.0, total_steps=12
    )
    params = jax.tree.map(jnp.float32, _probe(np.random.default_rng(0)))
    gradients = _probe_gradients(10, seed=1)
    after = _trained(optimizers.make_optimizer(config, learning_rate), params, gradients)
    rates = [float(learning_rate(t)) for t in range(10)]
    expected = _lars_in_float64(params, gradients, rates, config)
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), params, expected)
    assert min(jax.tree.leaves(moved)) > 0.05
    # Ten float32 updates of values of order 1; a rate inside the buffer is off by tenths.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=3e-6), after, expected)


def test_lars_refuses_stacked_kernels_which_would_share_one_ratio() -> None:
    params = jax.tree.map(jnp.float32, _parameters(np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"name='lars' scales whole matrices, and blocks/mlp/ker"):
        optimizers.make_optimizer(LarsConfig(), 1.0).init(params)


# --- layer decay ---------------------------------------------------------------------------------


def _vit(depth: int) -> dict:
    return {
        "backbone": {
            "sos": np.ones((1, 4)),
            "positions": np.ones((9, 4)),
            "patch_embedding": {"kernel": np.ones((3, 4)), "bias": np.ones(4)},
            "blocks": {
                "mlp": {"kernel": np.ones((depth, 4, 4)), "bias": np.ones((depth, 4))},
                "norm": {"scale": np.ones((depth, 4))},
            },
            "final_norm": {"scale": np.ones(4)},
        },
        "head": {"kernel": np.ones((4, 5)), "bias": np.ones(5)},
    }


def _scale_in_mae(name: str, decay: float, blocks: int) -> float:
    """`param_groups_lrd` with `get_layer_id_for_vit` of MAE's and BEiT's fine-tuning."""
    num_layers = blocks + 1
    scales = [decay ** (num_layers - i) for i in range(num_layers + 1)]
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return scales[0]
    if name.startswith("blocks"):
        return scales[int(name.split(".")[1]) + 1]
    return scales[num_layers]


def _layers(tree: dict, depth: int) -> dict[str, np.ndarray]:
    """The leaves under the names that MAE has for them, one for each block."""
    backbone = tree["backbone"]
    named = {
        "cls_token": backbone["sos"],
        "pos_embed": backbone["positions"],
        "patch_embed.proj.weight": backbone["patch_embedding"]["kernel"],
        "patch_embed.proj.bias": backbone["patch_embedding"]["bias"],
        "norm.weight": backbone["final_norm"]["scale"],
        "head.weight": tree["head"]["kernel"],
        "head.bias": tree["head"]["bias"],
    }
    for i in range(depth):
        named[f"blocks.{i}.mlp.weight"] = backbone["blocks"]["mlp"]["kernel"][i]
        named[f"blocks.{i}.mlp.bias"] = backbone["blocks"]["mlp"]["bias"][i]
        named[f"blocks.{i}.norm.weight"] = backbone["blocks"]["norm"]["scale"][i]
    return named


@pytest.mark.parametrize("depth", [1, 12, 24])
def test_layer_decay_scales_whole_updates_as_maes_parameter_groups_do(depth: int) -> None:
    decay = 0.75
    params = jax.tree.map(jnp.float32, _vit(depth))
    rng = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params) for _ in range(2)
    ]

    config = default_config(objective="classification")
    config.model.depth = depth
    method = load(config).method

    def update(layer_decay: float) -> dict[str, np.ndarray]:
        config = AdamWConfig(layer_decay=layer_decay, weight_decay=0.3)
        optimizer = optimizers.build_optimizer(config, 0.1, method)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
        return _layers(updates, depth)

    plain, decayed = update(1.0), update(decay)
    for name, value in decayed.items():
        # A rate that is multiplied by the scale multiplies Adam's step and the weight decay.
        expected = _scale_in_mae(name, decay, depth) * plain[name]
        np.testing.assert_allclose(value, expected, rtol=2e-6, err_msg=name)


def test_layer_decay_of_one_leaves_the_state_and_its_names_as_they_are() -> None:
    params = jax.tree.map(jnp.asarray, _vit(2))
    state = optimizers.make_optimizer(AdamWConfig(), 0.1).init(params)
    assert list(state) == ["clip", "adam", "decay", "learning_rate"]
    assert jax.tree.structure(state["adam"].mu) == jax.tree.structure(params)


def test_layer_decay_without_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay=0\.5 needs layer_of"):
        optimizers.make_optimizer(AdamWConfig(layer_decay=0.5), 0.1)


# --- frozen and stacked parameters, running statistics -------------------------------------------


def _stack(trees: list[dict]) -> dict:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@pytest.mark.parametrize(
    "config", [LarsConfig(weight_decay=0.1, clip_norm=0.3), AdamWConfig(clip_norm=0.3)]
)
def test_probes_side_by_side_train_as_each_would_alone(config: AdamWConfig | LarsConfig) -> None:
    """Of gradients that differ tenfold one is clipped and one is not."""

    def learning_rate(step: jax.Array) -> jax.Array:
        return 0.3 / (1 + step)

    alone = optimizers.make_optimizer(config, learning_rate)
    probes = [jax.tree.map(jnp.float32, _probe(np.random.default_rng(seed))) for seed in (0, 1)]
    gradients = [
        [jax.tree.map(lambda x, s=scale: s * x, g) for g in _probe_gradients(4, seed)]
        for seed, scale in ((2, 0.2), (3, 2.0))
    ]
    norms = [float(optax.global_norm(g)) for of_probe in gradients for g in of_probe]
    assert max(norms[:4]) < 0.3 < min(norms[4:])
    expected = [_trained(alone, p, g) for p, g in zip(probes, gradients, strict=True)]

    backbone = {"blocks": {"kernel": np.ones((2, 3, 3), np.float32)}}
    together = _trained(
        optimizers.make_optimizer(config, learning_rate, frozen=("backbone",), stacked="probes"),
        {"backbone": backbone, "probes": _stack(probes)},
        [{"backbone": backbone, "probes": _stack([a, b])} for a, b in zip(*gradients, strict=True)],
    )
    # The same float32 sums, of which the compiler may change the order.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6),
        together["probes"],
        _stack(expected),
    )


@pytest.mark.parametrize("config", [LarsConfig(), AdamWConfig(weight_decay=0.5)])
def test_frozen_parameters_stay_bit_for_bit_and_have_no_state(
    config: AdamWConfig | LarsConfig,
) -> None:
    rng = np.random.default_rng(0)
    params = jax.tree.map(jnp.float32, {"backbone": _parameters(rng), "probes": _probe(rng)})
    optimizer = optimizers.make_optimizer(config, 0.1, frozen=("backbone",))
    after = _trained(optimizer, params, [jax.tree.map(np.ones_like, params)] * 3)
    jax.tree.map(np.testing.assert_array_equal, after["backbone"], params["backbone"])
    assert (
        np.abs(after["probes"]["classifier"]["bias"] - params["probes"]["classifier"]["bias"]).min()
        > 0
    )
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(optimizer.init(params))
    ]
    assert not [path for path in paths if "backbone" in path]
    assert [path for path in paths if path.endswith("/probes/classifier/kernel")]


@pytest.mark.parametrize("stacked", [None, "probes"])
def test_running_statistics_step_by_a_tenth_whatever_the_rate_and_are_not_clipped(
    stacked: str | None,
) -> None:
    def make(value: float) -> dict:
        leaf = jnp.full((2, 3), value)
        return {
            "probes": {
                "norm": {"running_mean": leaf, "running_var": leaf},
                "classifier": {"kernel": jnp.zeros((2, 3, 3))},
            }
        }

    config = AdamWConfig(clip_norm=1e-3, weight_decay=0.5)
    optimizer = optimizers.make_optimizer(config, 0.0, stacked=stacked)
    state = optimizer.init(make(2.0))
    # running - batch's, where the batch's is 5.
    updates, new_state = optimizer.update(make(2.0 - 5.0), state, make(2.0))
    norm = updates["probes"]["norm"]
    # 0.9 * 2 + 0.1 * 5 = 2.3, torch's formula; float32 of 0.3.
    np.testing.assert_allclose(norm["running_mean"], 0.3, rtol=1e-6)
    np.testing.assert_allclose(norm["running_var"], 0.3, rtol=1e-6)
    # Neither have they a part in the norm that the others are clipped by: all theirs is zero.
    assert not np.any(new_state["adam"].mu["probes"]["classifier"]["kernel"])
    assert not jax.tree.leaves(new_state["adam"].mu["probes"]["norm"])


def test_a_trained_parameter_outside_the_stack_is_named() -> None:
    params = {"backbone": {"sos": np.ones(2)}, "probes": {"kernel": np.ones((2, 2, 2))}}
    with pytest.raises(ValueError, match="backbone/sos is trained and is not below 'probes'"):
        optimizers.make_optimizer(LarsConfig(), 0.1, stacked="probes").init(params)


# --- the rate ------------------------------------------------------------------------------------


def test_rate_of_table_8_rises_for_forty_epochs_then_falls_along_half_a_cosine() -> None:
    steps_per_epoch = 312  # 1,281,167 images // 4096
    total = 400 * steps_per_epoch
    warmup = 40 * steps_per_epoch
    rate = optimizers.learning_rate_schedule(
        AdamWConfig(),
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


def test_warmup_longer_than_the_run_only_rises_and_warns_with_its_share(caplog) -> None:
    config = AdamWConfig(base_learning_rate=1.0, warmup_epochs=40.0)
    with caplog.at_level("WARNING", logger="absl"):
        rate = optimizers.learning_rate_schedule(
            config, batch_size=256, steps_per_epoch=312.0, total_steps=10 * 312
        )
    np.testing.assert_allclose([rate(t) for t in range(4)], np.arange(4) / (40 * 312), rtol=1e-6)
    (record,) = caplog.records
    assert "over 12480 steps and the run has 3120: it ends at 25%" in record.getMessage()
    assert "lower config.optimizer.warmup_epochs" in record.getMessage()


def test_warmup_that_ends_before_the_run_does_not_warn(caplog) -> None:
    with caplog.at_level("WARNING", logger="absl"):
        optimizers.learning_rate_schedule(
            AdamWConfig(warmup_epochs=1.0), batch_size=256, steps_per_epoch=10.0, total_steps=11
        )
    assert not caplog.records


def test_steps_go_before_epochs_and_a_rate_before_a_base_rate_and_the_log_names_them(
    caplog,
) -> None:
    config = AdamWConfig(
        base_learning_rate=5.0, learning_rate=1.0, warmup_epochs=40.0, warmup_steps=0
    )
    with caplog.at_level("INFO", logger="absl"):
        rate = optimizers.learning_rate_schedule(
            config, batch_size=4096, steps_per_epoch=312.0, total_steps=8
        )
    assert float(rate(0)) == 1.0
    assert "peak 1 (learning_rate), 0 steps of warm-up (warmup_steps)" in caplog.text


def test_warmup_may_have_no_steps() -> None:
    config = AdamWConfig(base_learning_rate=1.0, warmup_steps=0)
    rate = optimizers.learning_rate_schedule(
        config, batch_size=256, steps_per_epoch=312.0, total_steps=8
    )
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 8))
    np.testing.assert_allclose([rate(t) for t in range(9)], expected, atol=1e-7)


def test_a_fraction_of_an_epoch_counts_in_the_warmup() -> None:
    config = AdamWConfig(base_learning_rate=1.0, warmup_epochs=0.5)
    rate = optimizers.learning_rate_schedule(
        config, batch_size=256, steps_per_epoch=7.2, total_steps=100
    )
    assert float(rate(2)) == pytest.approx(0.5)
    assert float(rate(4)) == pytest.approx(1.0)


def test_a_rate_that_is_given_is_not_scaled_and_the_cosine_ends_where_it_is_told() -> None:
    config = AdamWConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=10)
    rate = optimizers.learning_rate_schedule(
        config, batch_size=4096, steps_per_epoch=1.0, total_steps=110
    )
    at = {0: 0.0, 5: 5e-4, 10: 1e-3, 60: (1e-3 + 1e-5) / 2, 110: 1e-5, 500: 1e-5}
    for step, expected in at.items():
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6), step


def test_rates_of_table_13_are_larss_defaults() -> None:
    rate = optimizers.learning_rate_schedule(
        LarsConfig(), batch_size=16384, steps_per_epoch=78.0, total_steps=90 * 78
    )
    assert float(rate(780)) == pytest.approx(6.4)  # 0.1 * 16384 / 256 after 10 epochs


def test_a_rate_that_would_rise_at_the_end_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.final_learning_rate=0\.1 must not be above"):
        optimizers.learning_rate_schedule(
            AdamWConfig(final_learning_rate=0.1), batch_size=256, steps_per_epoch=1.0, total_steps=1
        )


_OF_ALL = {
    "base_learning_rate": -1.0,
    "learning_rate": -1.0,
    "final_learning_rate": -1.0,
    "weight_decay": -0.1,
    "clip_norm": float("nan"),
    "warmup_epochs": -1.0,
    "warmup_steps": -1,
}


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (AdamWConfig, _OF_ALL | {"b1": 1.0, "b2": -0.1, "eps": 0.0, "layer_decay": 0.0}),
        (LarsConfig, _OF_ALL | {"momentum": 1.0, "trust_coefficient": 0.0}),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_key(
    config: Callable[..., Any], wrong: dict[str, Any]
) -> None:
    for key, value in wrong.items():
        with pytest.raises(ValueError, match=rf"optimizer\.{key} must be .* got"):
            config(**{key: value})
