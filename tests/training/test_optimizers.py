"""AdamW and LARS against their formulas in float64, which parameters they move, and the rates."""

import dataclasses
import math

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


@pytest.mark.parametrize(
    ("config", "reference", "draw"),
    [
        (AdamWConfig(weight_decay=0.3), _adamw_in_float64, _parameters),
        # Norms of these gradients go from about 1 to 20, so that some are clipped and some are not.
        (AdamWConfig(weight_decay=0.3, clip_norm=5.0), _adamw_in_float64, _parameters),
        (LarsConfig(weight_decay=0.0, trust_coefficient=0.05), _lars_in_float64, _probe),
        (LarsConfig(weight_decay=0.2, trust_coefficient=0.05), _lars_in_float64, _probe),
    ],
)
def test_updates_follow_the_formula_over_ten_steps_while_the_rate_changes(config, reference, draw):
    config = dataclasses.replace(config, warmup_steps=3)
    batch_size = 256 * (300 if draw is _parameters else 10)
    learning_rate = optimizers.learning_rate_schedule(
        config, batch_size=batch_size, steps_per_epoch=1.0, total_steps=12
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(np.float32, draw(rng))
    gradients = [
        jax.tree.map(lambda x, s=scale: np.float32(s * rng.normal(size=x.shape)), params)
        for scale in np.geomspace(0.1, 2.0, 10)
    ]
    after = _trained(optimizers.make_optimizer(config, learning_rate), params, gradients)
    rates = [float(learning_rate(t)) for t in range(10)]
    expected = reference(params, gradients, rates, config)
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), params, expected)
    assert min(jax.tree.leaves(moved)) > 0.05
    # Ten float32 updates of values of order 1; a rate inside of LARS's buffer is off by tenths.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=3e-6), after, expected)


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


def _scales_of_mae(depth: int, decay: float) -> dict:
    """`param_groups_lrd` with `get_layer_id_for_vit` of MAE's and BEiT's fine-tuning.

    All before the blocks is layer 0, block i is layer i + 1, and what follows is layer depth + 1.
    """
    first, *blocks, last = np.float32(decay) ** (depth + 1 - np.arange(depth + 2))
    scales = jax.tree.map(lambda _: last, _vit(depth))
    for name in ("sos", "positions", "patch_embedding"):
        scales["backbone"][name] = jax.tree.map(lambda _: first, scales["backbone"][name])
    scales["backbone"]["blocks"] = jax.tree.map(
        lambda leaf: np.reshape(blocks, (depth, *[1] * (leaf.ndim - 1))),
        _vit(depth)["backbone"]["blocks"],
    )
    return scales


@pytest.mark.parametrize("depth", [1, 12])
def test_layer_decay_scales_whole_updates_as_maes_parameter_groups_do(depth):
    decay = 0.75
    params = jax.tree.map(jnp.float32, _vit(depth))
    rng = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), params) for _ in range(2)
    ]

    config = default_config(objective="classification")
    config.model.depth = depth
    method = load(config).method

    def update(layer_decay: float) -> dict:
        config = AdamWConfig(layer_decay=layer_decay, weight_decay=0.3)
        optimizer = optimizers.build_optimizer(config, 0.1, method)
        state = optimizer.init(params)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
        return updates

    # A rate that is multiplied by the scale multiplies Adam's step and the weight decay.
    expected = jax.tree.map(np.multiply, update(1.0), _scales_of_mae(depth, decay))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=3e-6), update(decay), expected)


def test_layer_decay_of_one_leaves_the_state_and_its_names_as_they_are():
    params = jax.tree.map(jnp.asarray, _vit(2))
    state = optimizers.make_optimizer(AdamWConfig(), 0.1).init(params)
    assert list(state) == ["clip", "adam", "decay", "learning_rate"]
    assert jax.tree.structure(state["adam"].mu) == jax.tree.structure(params)


# --- frozen and stacked parameters, running statistics -------------------------------------------


def _below_probes(path: tuple[str, ...]) -> bool:
    return path[0] == "probes"


def _stack(trees: list[dict]) -> dict:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@pytest.mark.parametrize(
    "config", [LarsConfig(weight_decay=0.1, clip_norm=0.3), AdamWConfig(clip_norm=0.3)]
)
def test_probes_side_by_side_train_as_each_would_alone(config):
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
        optimizers.make_optimizer(config, learning_rate, trains=_below_probes, stacked="probes"),
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
def test_frozen_parameters_stay_bit_for_bit_and_have_no_state(config):
    rng = np.random.default_rng(0)
    params = jax.tree.map(jnp.float32, {"backbone": _parameters(rng), "probes": _probe(rng)})
    optimizer = optimizers.make_optimizer(config, 0.1, trains=_below_probes)
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
def test_running_statistics_step_by_a_tenth_whatever_the_rate_and_are_not_clipped(stacked):
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


# --- the rate ------------------------------------------------------------------------------------


EPOCH = 312  # steps: 1,281,167 images // 4096
PEAK = 2.4e-3  # 1.5e-4 * 4096 / 256
RISING = {step: step / (40 * EPOCH) for step in (0, 1, 2, 10 * EPOCH)}
RATES: dict[str, tuple] = {  # config, batch size, steps of an epoch, of the run; rate at a step
    # Up for 40 epochs, and down along half a cosine.
    "table 8": (AdamWConfig(), 4096, EPOCH, 400 * EPOCH, {
        0: 0.0, 20 * EPOCH: PEAK / 2, 40 * EPOCH: PEAK, 160 * EPOCH: PEAK * 0.75,
        220 * EPOCH: PEAK / 2, 400 * EPOCH: 0.0, 400 * EPOCH + 100: 0.0,
    }),
    "table 13": (LarsConfig(), 16384, 78, 90 * 78, {780: 6.4}),  # 0.1 * 16384 / 256
    "given": (
        AdamWConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=10), 4096, 1, 110,
        {0: 0.0, 5: 5e-4, 10: 1e-3, 60: (1e-3 + 1e-5) / 2, 110: 1e-5, 500: 1e-5},
    ),
    "from more than nothing": (
        AdamWConfig(learning_rate=1e-3, initial_learning_rate=1e-4, warmup_steps=10), 4096, 1, 110,
        {0: 1e-4, 5: (1e-3 + 1e-4) / 2, 10: 1e-3, 60: 5e-4},
    ),
    "no warm-up": (
        AdamWConfig(base_learning_rate=1.0, warmup_steps=0), 256, EPOCH, 8,
        {t: 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(9)},
    ),
    "a fraction of an epoch": (
        AdamWConfig(base_learning_rate=1.0, warmup_epochs=0.5), 256, 7.2, 100, {2: 0.5, 4: 1.0}
    ),
    "longer than the run": (AdamWConfig(base_learning_rate=1.0), 256, EPOCH, 10 * EPOCH, RISING),
}  # fmt: skip


@pytest.mark.parametrize("name", RATES)
def test_rate_at_a_step_follows_the_config(name, caplog):
    config, batch_size, steps_per_epoch, total_steps, expected = RATES[name]
    with caplog.at_level("WARNING", logger="absl"):
        rate = jax.jit(
            optimizers.learning_rate_schedule(
                config,
                batch_size=batch_size,
                steps_per_epoch=float(steps_per_epoch),
                total_steps=total_steps,
            )
        )
    for step, value in expected.items():
        assert float(rate(jnp.int32(step))) == pytest.approx(value, rel=2e-6, abs=1e-7), step
    warned = "over 12480 steps and the run has 3120: it ends at 25%" in caplog.text
    assert warned == bool(caplog.records) == (name == "longer than the run")


def test_steps_go_before_epochs_and_a_rate_before_a_base_rate_and_the_log_names_them(caplog):
    config = AdamWConfig(
        base_learning_rate=5.0, learning_rate=1.0, warmup_epochs=40.0, warmup_steps=0
    )
    with caplog.at_level("INFO", logger="absl"):
        rate = optimizers.learning_rate_schedule(
            config, batch_size=4096, steps_per_epoch=312.0, total_steps=8
        )
    assert float(rate(0)) == 1.0
    assert "peak 1 (learning_rate), 0 steps of warm-up (warmup_steps)" in caplog.text


def test_what_an_optimizer_cannot_do_is_an_error_that_names_it():
    for key in ("initial_learning_rate", "final_learning_rate"):
        config = AdamWConfig(**{key: 0.1})
        with pytest.raises(ValueError, match=rf"optimizer\.{key}=0\.1 must not be above"):
            optimizers.learning_rate_schedule(
                config, batch_size=256, steps_per_epoch=1.0, total_steps=1
            )
    with pytest.raises(ValueError, match=r"optimizer\.layer_decay=0\.5 needs layer_of"):
        optimizers.make_optimizer(AdamWConfig(layer_decay=0.5), 0.1)
    params = jax.tree.map(jnp.float32, _parameters(np.random.default_rng(0)))
    # They would share one ratio.
    with pytest.raises(ValueError, match=r"name='lars' scales whole matrices, and blocks/mlp/ker"):
        optimizers.make_optimizer(LarsConfig(), 1.0).init(params)
    with pytest.raises(ValueError, match="head/bias is trained and is not below 'blocks'"):
        optimizers.make_optimizer(LarsConfig(), 0.1, stacked="blocks").init(params)


_OF_ALL = {"learning_rate": -1.0, "weight_decay": -0.1, "clip_norm": math.nan, "warmup_steps": -1}


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        (AdamWConfig, _OF_ALL | {"b1": 1.0, "b2": -0.1, "eps": 0.0, "layer_decay": 0.0}),
        (LarsConfig, _OF_ALL | {"momentum": 1.0, "trust_coefficient": 0.0}),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_key(config, wrong):
    for key, value in wrong.items():
        with pytest.raises(ValueError, match=rf"optimizer\.{key} must be .* got"):
            config(**{key: value})
