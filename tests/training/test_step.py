"""One train step: accumulation, dropped updates, randomness, donation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from darl_jax.methods import Batch, Metrics
from darl_jax.methods.darl.diffusion import DiffusionConfig
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSE, MSEConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import AdamWConfig, make_optimizer
from darl_jax.training.state import TrainState, parameters
from darl_jax.training.step import make_train_step
from tests.methods_on_images import images, method
from tests.random_modules import random_module

VIT = ViTConfig(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=4, dtype="float32")
DATA = images(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
KEY = jax.random.key(0)
LOSS_IS_NAN, GRADIENT_IS_NAN = 1, 2


class Poisoned(MSE):
    """The squared error, made non-finite by a label."""

    def loss(self, model: DARL, batch: Batch, key: Any) -> tuple[jax.Array, Metrics]:
        loss, metrics = super().loss(model, batch, key)
        nan = jnp.where((batch["label"] == LOSS_IS_NAN).any(), jnp.nan, 0.0)
        # sqrt(0) is 0, and its slope times 0 is not a number.
        zero = jnp.sum(model.backbone.sos[...] ** 2) * 0.0
        hidden = jnp.where((batch["label"] == GRADIENT_IS_NAN).any(), zero, 1.0)
        average = metrics["loss"].replace(total=metrics["loss"].total + nan)
        return loss + nan + 0.0 * jnp.sqrt(hidden), metrics | {"loss": average}


class FrozenStart(MSE):
    """The squared error with a start token that stays as it is."""

    def trains(self, path: tuple[str, ...]) -> bool:
        return path != ("backbone", "sos")


OBJECTIVES = {
    "frozen_start": FrozenStart(MSEConfig(), VIT, DATA),
    "mse": method(MSEConfig(), VIT, DATA),
    "poisoned": Poisoned(MSEConfig(), VIT, DATA),
    "diffusion": method(DiffusionConfig(draws=2), VIT, DATA),
}
OPTIMIZER = make_optimizer(AdamWConfig(), lambda step: 1e-2 / (1 + step))
SGD = optax.sgd(0.1)


def make_batch(examples: int = 4, label: int = 0, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    labels = np.zeros(examples, np.int32)
    labels[1] = label
    return {
        "image": jnp.asarray(rng.integers(0, 256, (examples, 8, 8, 3), np.uint8)),
        "label": jnp.asarray(labels),
        "mask": jnp.ones(examples, bool),
        "replaced": jnp.arange(examples) < 1,
        "stop": jnp.zeros(examples, bool),
    }


@functools.cache
def make_model(denoising: bool) -> DARL:
    return random_module(OBJECTIVES["diffusion" if denoising else "mse"].init)


def make_state(objective: str, optimizer: optax.GradientTransformation) -> TrainState:
    # Buffers of their own, for a step that takes them.
    params = jax.tree.map(np.array, parameters(make_model(OBJECTIVES[objective].denoising)))
    params = jax.tree.map(jnp.asarray, params)
    zeros = (jnp.zeros((), jnp.int32) for _ in range(3))
    opt_state = jax.jit(optimizer.init)(params)
    return TrainState(next(zeros), params, opt_state, next(zeros), next(zeros))


@functools.cache
def step_of(
    objective: str, accumulation_steps: int = 1, sgd: bool = False
) -> tuple[Callable[..., tuple[TrainState, Metrics]], TrainState]:
    """A compiled step and the state to start from."""
    graphdef = nnx.split(make_model(OBJECTIVES[objective].denoising))[0]
    optimizer = SGD if sgd else OPTIMIZER
    step = make_train_step(
        graphdef, OBJECTIVES[objective], optimizer, accumulation_steps=accumulation_steps
    )
    return jax.jit(step), make_state(objective, optimizer)


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def norm_of(tree: Any) -> float:
    """In float64."""
    return float(np.sqrt(sum(np.sum(np.float64(leaf) ** 2) for leaf in jax.tree.leaves(tree))))


def values(metrics: Metrics) -> dict[str, float]:
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def test_a_step_of_gradient_descent_is_the_parameters_less_the_gradient():
    """The gradient by central differences of the loss, along the step itself."""
    step, state = step_of("mse", sgd=True)
    new, metrics = step(state, make_batch(), KEY)
    gradient = jax.tree.map(
        lambda a, b: (np.asarray(a) - np.asarray(b)) / 0.1, state.params, new.params
    )
    graphdef = nnx.split(make_model(False))[0]
    loss = jax.jit(lambda p: OBJECTIVES["mse"].loss(nnx.merge(graphdef, p), make_batch(), KEY)[0])
    norm = norm_of(gradient)
    width = 1e-2
    ahead, behind = (
        loss(
            jax.tree.map(
                lambda p, g, s=s: np.float32(p + s * width * g / norm),
                jax.device_get(state.params),
                gradient,
            )
        )
        for s in (1, -1)
    )
    # The slope along the gradient is its norm; third derivatives leave width^2.
    assert (ahead - behind) / (2 * width) == pytest.approx(norm, rel=1e-2)
    assert values(metrics)["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    assert values(metrics)["loss"] == pytest.approx(float(loss(state.params)), rel=1e-6)
    assert values(metrics)["parameter_norm"] == pytest.approx(norm_of(new.params), rel=1e-6)
    assert values(metrics)["replaced_records"] == 1


@pytest.mark.parametrize("counting", [(0, 1, 2, 3), (0, 1, 2), (1, 3)])
def test_gradients_of_micro_batches_average_to_that_of_the_batch(counting):
    """Also where one of the micro-batches, (0, 2) and (1, 3), counts less than the other."""
    batch = make_batch() | {"mask": jnp.isin(jnp.arange(4), jnp.asarray(counting))}
    (step, state), (in_two, _) = (step_of("mse", n, True) for n in (1, 2))
    whole, whole_metrics = step(state, batch, KEY)
    parts, metrics = in_two(state, batch, KEY)
    for got, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    for name, value in values(whole_metrics).items():
        assert values(metrics)[name] == pytest.approx(value, rel=1e-5), name
    patches = 4 * len(counting)
    assert float(metrics["loss"].count) == float(whole_metrics["loss"].count) == patches


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_what_is_not_trained_stays_and_has_no_gradient(accumulation_steps):
    step, state = step_of("mse", accumulation_steps, True)
    frozen, _ = step_of("frozen_start", accumulation_steps, True)
    batch = make_batch()
    (all_move, metrics), (moved, of_frozen) = step(state, batch, KEY), frozen(state, batch, KEY)
    expected, before = all_move.params, state.params["backbone"]["sos"]
    change = norm_of(expected["backbone"]["sos"] - before) / 0.1
    np.testing.assert_array_equal(moved.params["backbone"]["sos"], before)
    expected["backbone"]["sos"] = before
    for got, wanted in zip(jax.tree.leaves(moved.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    norms = (values(each)["gradient_norm"] for each in (metrics, of_frozen))
    assert change > 1e-3
    assert next(norms) ** 2 - next(norms) ** 2 == pytest.approx(change**2, rel=1e-2)


def test_micro_batches_of_diffusion_draw_noise_of_their_own():
    step, state = step_of("diffusion", 2)
    half = make_batch()
    # Each example twice, so that both micro-batches hold the same ones.
    doubled = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), half)
    _, metrics = step(state, doubled, KEY)
    _, alone = step_of("diffusion")[0](state, half, KEY)
    assert float(metrics["loss"].count) == 2 * float(alone["loss"].count)
    counts = [float(metrics[f"loss_by_gamma/decile_{i}"].count) for i in range(10)]
    assert sum(counts) == float(metrics["loss"].count)
    # The same gammas in both would make every decile's count even.
    assert any(count % 2 for count in counts)


def test_the_average_follows_the_parameters_and_not_a_dropped_update():
    graphdef = nnx.split(make_model(False))[0]
    step = jax.jit(make_train_step(graphdef, OBJECTIVES["poisoned"], SGD, ema_decay=0.9))
    state = make_state("mse", SGD)
    state = dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.params))
    expected = jax.tree.map(np.float64, state.params)
    for label in (0, 0, GRADIENT_IS_NAN, 0):
        before = state
        state, _ = step(state, make_batch(label=label), KEY)
        if label:
            assert equal(state.ema, before.ema)
        else:
            expected = jax.tree.map(
                lambda a, p: 0.9 * a + 0.1 * np.float64(p), expected, state.params
            )
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert equal(state.evaluated_params, state.ema)
    assert not equal(state.ema, state.params)
    # What does not move has the same bits in its average, however slow that is.
    still = make_train_step(graphdef, OBJECTIVES["mse"], optax.sgd(0.0), ema_decay=0.9999)
    state = make_state("mse", optax.sgd(0.0))
    state = dataclasses.replace(state, ema=jax.tree.map(jnp.copy, state.params))
    new, _ = jax.jit(still)(state, make_batch(), KEY)
    assert equal(new.ema, new.params)


@pytest.mark.parametrize(
    ("poison", "accumulation_steps"), [(LOSS_IS_NAN, 1), (GRADIENT_IS_NAN, 1), (LOSS_IS_NAN, 2)]
)
def test_an_update_that_is_not_finite_is_dropped_and_counted(poison, accumulation_steps):
    step, state = step_of("poisoned", accumulation_steps)
    good, bad = make_batch(), make_batch(label=poison)
    state, metrics = step(state, good, KEY)
    assert int(state.dropped_updates) == int(state.dropped_in_a_row) == 0
    before = state
    for in_a_row in (1, 2):
        state, metrics = step(state, bad, KEY)
        assert equal(state.params, before.params)
        assert equal(state.opt_state, before.opt_state)
        assert int(state.step) == 1 + in_a_row, "the data go on"
        assert int(state.dropped_updates) == int(state.dropped_in_a_row) == in_a_row
        assert values(metrics)["dropped_in_a_row"] == in_a_row
        assert np.isnan(values(metrics)["loss"]) == (poison == LOSS_IS_NAN)
        assert np.isnan(values(metrics)["gradient_norm"]) == (poison == GRADIENT_IS_NAN)
        assert np.isfinite(values(metrics)["parameter_norm"])
    state, metrics = step(state, good, KEY)
    assert (int(state.dropped_updates), int(state.dropped_in_a_row)) == (2, 0)
    assert values(metrics)["dropped_updates"] == 2
    # The optimizer goes on as if the bad batches had never been.
    expected, _ = step(before, good, KEY)
    assert equal(state.params, expected.params)
    assert equal(state.opt_state, expected.opt_state)
    assert not equal(state.params, before.params)


def test_noise_follows_from_key_and_step_alone():
    step, state = step_of("diffusion")
    batch = make_batch()
    loss = values(step(state, batch, KEY)[1])["loss"]
    assert values(step(state, batch, KEY)[1]) == values(step(state, batch, KEY)[1])
    assert values(step(state, batch, jax.random.key(1))[1])["loss"] != loss
    later = dataclasses.replace(state, step=state.step + 1)
    assert values(step(later, batch, KEY)[1])["loss"] != loss
    # A run resumed at step 1 draws what fold_in(key, 1) gives, whatever came before.
    graphdef, params = nnx.split(make_model(True))
    folded = jax.jit(
        lambda p, k: OBJECTIVES["diffusion"].loss(nnx.merge(graphdef, p), batch, k)[0]
    )(params, jax.random.fold_in(KEY, 1))
    assert values(step(later, batch, KEY)[1])["loss"] == pytest.approx(float(folded), rel=1e-5)


def test_a_donated_state_and_all_of_xlas_optimizations_leave_the_losses_as_they_are():
    """The suite compiles with most optimizations off (tests/conftest.py)."""
    plain, state = step_of("diffusion")
    step = make_train_step(nnx.split(make_model(True))[0], OBJECTIVES["diffusion"], OPTIMIZER)
    fast = make_state("diffusion", OPTIMIZER)
    lowered = jax.jit(step, donate_argnums=0).lower(fast, make_batch(), KEY)
    try:
        jax.config.update("jax_disable_most_optimizations", False)
        optimized = lowered.compile({"xla_cpu_use_fusion_emitters": True})
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    for seed in range(3):
        batch, old = make_batch(seed=seed), fast
        state, metrics = plain(state, batch, KEY)
        fast, of_fast = optimized(fast, batch, KEY)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
        # float32 sums in another order, through three updates.
        assert values(of_fast)["loss"] == pytest.approx(values(metrics)["loss"], rel=1e-5)
