"""AIM's prefixes, what its outputs see, what counts in its loss, and what is refused."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods import Batch
from darl_jax.methods.aim.head import HeadConfig
from darl_jax.methods.aim.objective import AIM, AIMConfig, AIMMethod
from darl_jax.methods.transfer.probe_model import ProbesConfig
from darl_jax.nn import attention
from darl_jax.nn.orders import OrderConfig, fixed_order
from darl_jax.nn.vit import ViTConfig
from tests.methods_on_images import images, method
from tests.random_modules import random_module

VIT = ViTConfig(
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=24,
    patch_size=4,
    **AIMMethod.model_defaults,
    dtype="float32",
)
DATA = images(12, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
PATCHES = 9
KEY = jax.random.key(0)
MLP = HeadConfig("mlp", depth=2, width=8)
TRANSFORMER = HeadConfig("transformer", depth=2, width=8, num_heads=2)


def aim(head: HeadConfig = MLP, order: str = "raster", **objective: Any) -> AIMMethod:
    return method(AIMConfig(head=head, **objective), VIT, DATA, order=OrderConfig(order))


def make_batch(examples: int = 4) -> Batch:
    pixels = np.random.default_rng(0).integers(0, 256, (examples, 12, 12, 3), np.uint8)
    return {"image": jnp.asarray(pixels), "mask": jnp.ones(examples, bool)}


@pytest.mark.parametrize("head", [MLP, TRANSFORMER], ids=lambda head: head.kind)
@pytest.mark.parametrize("prefix", [1, 4])
def test_an_output_depends_on_the_prefix_and_the_patches_before_and_on_nothing_else(
    head: HeadConfig, prefix: int
) -> None:
    of = aim(head)
    model = random_module(of.init)
    patches = of.patches(make_batch(1))

    def outputs(patches: jax.Array) -> jax.Array:
        return model(patches, jnp.array([prefix]))[0].sum(-1)

    sees = np.abs(jax.jit(jax.jacobian(outputs))(patches))[:, 0].max(-1) > 0
    output, patch = np.arange(PATCHES - 1)[:, None], np.arange(PATCHES)
    np.testing.assert_array_equal(sees, (patch < prefix) | (patch <= output))


def test_prefixes_of_training_are_uniform_from_one_patch_to_all_but_one() -> None:
    drawn = np.asarray(aim().draw_prefix(KEY, 8000, PATCHES))
    lengths, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(lengths, np.arange(1, PATCHES))
    assert np.abs(counts - 1000).max() < 150  # five standard deviations
    assert (np.asarray(aim(attention="causal").draw_prefix(KEY, 8, PATCHES)) == 1).all()


def test_the_loss_is_a_mean_over_the_targets_of_the_batch_and_parts_merge_to_it() -> None:
    of, batch = aim(), make_batch()
    model = random_module(of.init)
    prefix = jnp.array([1, 8, 3, 5])

    @jax.jit
    def parts(keep: jax.Array) -> Any:
        return of.loss_after(model, {**batch, "mask": keep}, prefix)

    (whole, _), *halves = (parts(jnp.array(keep)) for keep in ([True] * 4, [True, False] * 2))
    rest = parts(jnp.array([False, True] * 2))
    counts = [float(metrics["loss"].count) for _, metrics in (*halves, rest)]
    assert counts == [8 + 6, 1 + 4]
    merged = halves[0][1]["loss"].merge(rest[1]["loss"]).compute()
    np.testing.assert_allclose(merged, whole, rtol=1e-6)
    # A mean of the parts' means is another number.
    assert abs(float(halves[0][0] + rest[0]) / 2 - float(whole)) > 1e-3


def test_examples_that_the_mask_leaves_out_count_nothing_not_even_as_nan() -> None:
    of, batch = aim(), make_batch()
    model = random_module(of.init)
    prefix = jnp.array([1, 8, 3, 5])

    class Broken(AIM, pytree=False):
        """Gives no number for the second image."""

        def __init__(self) -> None:
            self.backbone = model.backbone

        def __call__(self, *arguments: Any) -> jax.Array:
            good = jnp.arange(4)[:, None, None] != 1
            return jnp.where(good, model(*arguments), jnp.nan)

    mask = jnp.array([True, False, True, True])
    loss, metrics = of.loss_after(Broken(), {**batch, "mask": mask}, prefix)
    expected, _ = of.loss_after(model, {**batch, "mask": mask}, prefix)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(metrics["loss"].count) == 8 + 6 + 4


def test_validation_has_one_prefix_or_those_that_its_key_draws() -> None:
    fixed, drawn, batch = aim(validation_prefix=3), aim(), make_batch()
    model = random_module(fixed.init)
    keys = KEY, jax.random.key(1)
    a, b = (fixed.validate(model, batch, key)["loss"] for key in keys)
    assert float(a.compute()) == float(b.compute())
    assert float(a.count) == 4 * 6
    a, b, again = (drawn.validate(model, batch, key)["loss"] for key in (*keys, KEY))
    assert float(a.compute()) == float(again.compute())
    assert float(a.count) != float(b.count)


@pytest.mark.parametrize("order", ["raster", "spiral", "permutation"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pictures_show_the_predictions_of_the_loss_beside_the_prefix(order, normalize) -> None:
    of = aim(order=order, validation_prefix=4, normalize_target=normalize)
    model, batch = random_module(of.init), make_batch()
    shown = of.predict(model, batch, KEY)
    loss, _ = of.loss_after(model, batch, jnp.full(4, 4))
    np.testing.assert_array_equal(shown.order, fixed_order(OrderConfig(order), (3, 3)))
    seen = shown.order[:4]
    assert jnp.isnan(shown.error[:, seen]).all()
    np.testing.assert_allclose(jnp.nanmean(shown.error), loss, rtol=1e-6)
    np.testing.assert_array_equal(shown.predicted[:, seen], shown.target[:, seen])
    difference = np.asarray(shown.predicted - shown.target, np.float64)
    if normalize:
        difference /= np.sqrt(np.var(shown.target, -1, ddof=1, keepdims=True) + 1e-6)
    error = np.delete((difference**2).mean(-1), seen, axis=1)
    np.testing.assert_allclose(np.delete(shown.error, seen, axis=1), error, rtol=1e-4)


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ({}, {"start_token": "learned"}, r"start_token='learned' must be 'none' with config\.obj"),
        ({}, {"order": OrderConfig("random")}, "'permutation' is drawn once"),
        ({}, {"patch_size": 12}, r"model\.patch_size=12 leaves one patch"),
        ({"validation_prefix": 9}, {}, r"objective\.validation_prefix=9 must be from 1 to 8"),
        ({"validation_prefix": 0}, {}, r"objective\.validation_prefix=0 must be from 1 to 8"),
    ],
)
def test_what_leaves_nothing_to_predict_or_to_predict_from_is_refused(objective, model, message):
    with pytest.raises(ValueError, match=message):
        method(AIMConfig(**objective), VIT, DATA, **model)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "linear"}, r"objective\.head\.kind='linear' is unknown; choose from"),
        ({"depth": 0}, r"objective\.head\.depth=0 must be at least 1"),
        ({"width": 6}, r"objective\.head\.width=6 must be a multiple of 4"),
        ({"kind": "transformer", "num_heads": 7}, r"multiple of config\.objective\.head\.num_he"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused(keys, message) -> None:
    with pytest.raises(ValueError, match=message):
        HeadConfig(**keys)


def test_an_attention_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"objective\.attention='full' is unknown; choose from"):
        AIMConfig(attention="full")


def test_the_log_names_the_kernel_that_runs_with_a_prefix_mask(monkeypatch) -> None:
    choose = attention.choose_implementation
    tpu = {"device": types.SimpleNamespace(platform="tpu", device_kind="TPU v5")}
    monkeypatch.setattr(
        attention, "choose_implementation", lambda name, **keys: choose(name, **keys | tpu)
    )
    long = dataclasses.replace(VIT, patch_size=1, dtype="bfloat16"), images(32)
    of = method(AIMConfig(head=MLP), *long)
    assert of.tokens == 1024
    assert of.kernels(jax.devices()[0]) == {"attention": "xla"}
    probes = method(ProbesConfig(mask="full"), *long)
    assert probes.kernels(jax.devices()[0]) == {"attention": "splash"}
