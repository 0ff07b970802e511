"""The squared-error objective against float64 NumPy, from the model's own output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods import Batch
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn.vit import ViTConfig
from tests.methods_on_images import RGB, RGB_MEAN, RGB_STD, method, rgb_batch
from tests.random_modules import random_darl

VIT = ViTConfig(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=4, dtype="float32")
KEY = jax.random.key(0)


def exact_patches(batch: Batch) -> np.ndarray:
    """Standardized patches in float64, by loops."""
    images = (np.asarray(batch["image"], np.float64) / 255 - np.array(RGB_MEAN)) / np.array(RGB_STD)
    rows = [
        images[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(len(images), -1)
        for i in range(2)
        for j in range(3)
    ]
    return np.stack(rows, axis=1)


def normalized(patches: np.ndarray) -> np.ndarray:
    mean, variance = patches.mean(-1, keepdims=True), patches.var(-1, keepdims=True, ddof=1)
    return (patches - mean) / np.sqrt(variance + 1e-6)


def make_model() -> DARL:
    return random_darl(VIT, PatchDecoderConfig("mlp", 1), grid=(2, 3))


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_is_the_mean_squared_error_of_the_models_output(normalize: bool) -> None:
    model = make_model()
    objective = method(MSEConfig(normalize_target=normalize), data=RGB, patch_size=4)
    batch = rgb_batch(4, 12)
    patches = exact_patches(batch)

    @jax.jit
    def compute(batch, patches):
        # The output at t for patch t, from the patches before it.
        output = model.patch_decoder(model.backbone(patches).tokens[:, :-1])
        return output, objective.loss(model, batch, KEY), objective.predict(model, batch, KEY)

    output, (loss, metrics), prediction = compute(batch, jnp.asarray(patches, jnp.float32))
    output = np.asarray(output, np.float64)
    error = (output - (normalized(patches) if normalize else patches)) ** 2
    np.testing.assert_allclose(loss, error.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"].compute(), error.mean(), rtol=1e-5)
    assert float(metrics["loss"].count) == 4 * 6

    np.testing.assert_allclose(prediction.target, patches, atol=1e-5)
    np.testing.assert_allclose(prediction.error, error.mean(-1), rtol=1e-4)
    if normalize:  # Pictures are in pixels, whatever the loss is taken in.
        spread = np.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)
        output = output * spread + patches.mean(-1, keepdims=True)
    np.testing.assert_allclose(prediction.predicted, output, atol=1e-4)


def test_examples_that_the_mask_leaves_out_count_nothing_not_even_as_nan() -> None:
    batch, mask = rgb_batch(4, 12), jnp.array([True, False, True, False])
    objective, broken = method(MSEConfig(), data=RGB, patch_size=4), make_model()
    broken.encode = lambda patches, grid, order: patches
    broken.patch_decoder = lambda z: jnp.where(mask[:, None, None], 0.0 * z, jnp.nan)
    loss, metrics = objective.loss(broken, {**batch, "mask": mask}, KEY)
    np.testing.assert_allclose(loss, (exact_patches(batch)[::2] ** 2).mean(), rtol=1e-5)
    assert float(metrics["loss"].count) == 2 * 6
    loss, _ = objective.loss(broken, batch, KEY)
    assert jnp.isnan(loss), "a non-finite loss of an example that counts must be seen"
