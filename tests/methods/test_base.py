"""What both ways of predicting patches make of an order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods.darl.base import DARLMethod
from darl_jax.methods.darl.diffusion import DiffusionConfig
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.vit import ViTConfig
from tests.methods_on_images import images, method
from tests.random_modules import random_module

VIT = ViTConfig(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=4, dtype="float32")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
OBJECTIVES = {
    "mse": method(MSEConfig(), VIT, images(8, MEAN, STD)),
    "diffusion": method(DiffusionConfig(), VIT, images(8, MEAN, STD)),
}
EXAMPLES, GRID = 3, (2, 3)


def make_model(objective: DARLMethod, name: str) -> DARL:
    vit = dataclasses.replace(VIT, order=OrderConfig(name))
    return random_module(
        lambda rngs: DARL(
            vit,
            PatchDecoderConfig("mlp", 1),
            denoising=objective.denoising,
            two_stream=name == "random",
            grid=GRID,
            channels=3,
            rngs=rngs,
        )
    )


def make_batch() -> dict[str, jax.Array]:
    images = np.random.default_rng(0).integers(0, 128, (EXAMPLES, 8, 12, 3), np.uint8)
    return {"image": jnp.asarray(images), "mask": jnp.ones(EXAMPLES, bool)}


@pytest.mark.parametrize("order", ["spiral", "random"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_last_patch_of_an_order_moves_its_own_error_alone(name: str, order: str) -> None:
    objective, batch, key = OBJECTIVES[name], make_batch(), jax.random.key(1)
    model = make_model(objective, order)
    base = objective.predict(model, batch, key)
    last = np.broadcast_to(base.order, (EXAMPLES, 6))[:, -1]
    images = np.array(batch["image"])
    for image, (row, column) in enumerate(zip(*np.divmod(last, 3), strict=True)):
        images[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    changed = objective.predict(model, {**batch, "image": jnp.asarray(images)}, key)
    np.testing.assert_array_equal(changed.order, base.order)
    moved = np.asarray(changed.error != base.error)
    np.testing.assert_array_equal(moved, np.arange(6) == last[:, None])


def test_random_orders_follow_from_the_key() -> None:
    objective, batch = OBJECTIVES["mse"], make_batch()  # which draws nothing else
    model = make_model(objective, "random")
    first, again, other = (
        float(objective.loss(model, batch, jax.random.key(i))[0]) for i in (0, 0, 1)
    )
    assert first == again
    assert abs(first - other) > 1e-3
    fixed = make_model(objective, "spiral")
    first, other = (float(objective.loss(fixed, batch, jax.random.key(i))[0]) for i in (0, 1))
    assert first == other


def test_noise_does_not_depend_on_whether_an_order_is_drawn() -> None:
    """So two runs that differ by their order see the same noise at each step."""
    objective, batch, key = OBJECTIVES["diffusion"], make_batch(), jax.random.key(2)
    models = [make_model(objective, order) for order in ("raster", "random")]
    for model in models:
        model.patch_decoder = models[0].patch_decoder
        model.encode = lambda patches, grid, order: jnp.zeros((EXAMPLES, 6, 16))
    first, second = (float(objective.loss(model, batch, key)[0]) for model in models)
    assert first == second
