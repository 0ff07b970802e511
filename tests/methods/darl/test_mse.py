"""The squared-error objective against float64 NumPy, from the model's own output."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods import Batch
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn.vit import ViTConfig
from tests.methods_on_images import images, method
from tests.random_modules import random_module

VIT = ViTConfig(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=4, dtype="float32")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
DATA = images(8, MEAN, STD)
KEY = jax.random.key(0)


class StubModel(DARL, pytree=False):
    """Encodes patches as themselves, and decodes them by a function."""

    def __init__(self, decode: Callable[[jax.Array], jax.Array]):
        self.patch_decoder = decode

    def draw_order(self, key: jax.Array, batch: int, grid: tuple[int, int]) -> np.ndarray:
        del key, batch
        return np.arange(grid[0] * grid[1])

    def encode(self, patches: jax.Array, grid: tuple[int, int], order: np.ndarray) -> jax.Array:
        assert len(order) == grid[0] * grid[1] == patches.shape[1]
        return patches


def make_batch(examples: int = 4) -> Batch:
    images = np.random.default_rng(0).integers(0, 256, (examples, 8, 12, 3), np.uint8)
    return {"image": jnp.asarray(images), "mask": jnp.ones(examples, bool)}


def exact_patches(batch: Batch) -> np.ndarray:
    """Standardized patches in float64, by loops."""
    images = (np.asarray(batch["image"], np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    rows = [
        images[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(len(images), -1)
        for i in range(2)
        for j in range(3)
    ]
    return np.stack(rows, axis=1)


def normalized(patches: np.ndarray) -> np.ndarray:
    mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    return (patches - mean) / np.sqrt(variance + 1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_is_the_mean_squared_error_of_the_models_output(normalize: bool) -> None:
    model = random_module(
        lambda rngs: DARL(
            VIT, PatchDecoderConfig("mlp", 1), denoising=False, grid=(2, 3), channels=3, rngs=rngs
        )
    )
    objective = method(MSEConfig(normalize_target=normalize), data=DATA, patch_size=4)
    batch, graphdef_and_state = make_batch(), nnx.split(model)
    loss, metrics = jax.jit(lambda b: objective.loss(nnx.merge(*graphdef_and_state), b, KEY))(batch)
    patches = exact_patches(batch)
    # The output at t for patch t, from the patches before it.
    output = np.asarray(
        jax.jit(lambda p: model.patch_decoder(model.backbone(p).tokens[:, :-1]))(
            jnp.asarray(patches, jnp.float32)
        ),
        np.float64,
    )
    error = (output - (normalized(patches) if normalize else patches)) ** 2
    np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].compute(), error.mean(), rtol=1e-5)
    assert float(metrics["loss"].count) == 4 * 6

    prediction = objective.predict(model, batch, KEY)
    np.testing.assert_allclose(prediction.target, patches, atol=1e-5)
    np.testing.assert_allclose(prediction.error, error.mean(-1), rtol=1e-4)
    if normalize:  # Pictures are in pixels, whatever the loss is taken in.
        spread = np.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)
        output = output * spread + patches.mean(-1, keepdims=True)
    np.testing.assert_allclose(prediction.predicted, output, atol=1e-4)


def test_a_model_that_predicts_the_target_has_no_loss() -> None:
    batch = make_batch()
    loss, _ = method(MSEConfig(), data=DATA, patch_size=4).loss(StubModel(lambda z: z), batch, KEY)
    assert loss == 0
    target = jnp.asarray(normalized(exact_patches(batch)), jnp.float32)
    objective = method(MSEConfig(normalize_target=True), data=DATA, patch_size=4)
    loss, _ = objective.loss(StubModel(lambda z: target), batch, KEY)
    assert loss < 1e-10
    prediction = objective.predict(StubModel(lambda z: target), batch, KEY)
    np.testing.assert_allclose(prediction.predicted, prediction.target, atol=1e-5)


def test_examples_that_the_mask_leaves_out_count_nothing_not_even_as_nan() -> None:
    batch = make_batch()
    objective = method(MSEConfig(), data=DATA, patch_size=4)
    mask = jnp.array([True, False, True, False])
    broken = StubModel(lambda z: jnp.where(mask[:, None, None], 0.0 * z, jnp.nan))
    loss, metrics = objective.loss(broken, {**batch, "mask": mask}, KEY)
    np.testing.assert_allclose(loss, (exact_patches(batch)[::2] ** 2).mean(), rtol=1e-5)
    assert float(metrics["loss"].count) == 2 * 6
    loss, _ = objective.loss(broken, batch, KEY)
    assert jnp.isnan(loss), "a non-finite loss of an example that counts must be seen"


def test_means_merge_exactly_over_batches_of_different_size() -> None:
    batch = make_batch(5)
    objective, model = method(MSEConfig(), data=DATA, patch_size=4), StubModel(lambda z: 0.5 * z)
    masks = [jnp.arange(5) < 2, jnp.arange(5) >= 2]
    parts = [objective.loss(model, {**batch, "mask": mask}, KEY)[1]["loss"] for mask in masks]
    whole = objective.loss(model, batch, KEY)[0]
    np.testing.assert_allclose(parts[0].merge(parts[1]).compute(), whole, rtol=1e-6)


@pytest.mark.parametrize("decoder", [("transformer", 1), ("mlp", 0, True)])
def test_a_decoder_that_only_diffusion_has_is_refused(decoder: tuple) -> None:
    with pytest.raises(ValueError, match=r"objective\.name='diffusion'"):
        MSEConfig(patch_decoder=PatchDecoderConfig(*decoder))
