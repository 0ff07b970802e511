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
from tests.methods_on_images import RGB, method, rgb_batch
from tests.random_modules import random_darl

VIT = ViTConfig(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=4, dtype="float32")
OBJECTIVES = {
    "mse": method(MSEConfig(), VIT, RGB),
    "diffusion": method(DiffusionConfig(), VIT, RGB),
}
EXAMPLES, GRID = 3, (2, 3)


def make_model(objective: DARLMethod, order: str) -> DARL:
    vit = dataclasses.replace(VIT, order=OrderConfig(order))
    streams = {"denoising": objective.denoising, "two_stream": order == "random"}
    return random_darl(vit, PatchDecoderConfig("mlp", 1), grid=GRID, **streams)


@pytest.mark.parametrize(("name", "order"), [("mse", "spiral"), ("diffusion", "random")])
def test_the_last_patch_of_an_order_moves_its_own_error_alone(name: str, order: str) -> None:
    objective, batch, key = OBJECTIVES[name], rgb_batch(EXAMPLES, 12, 127), jax.random.key(1)
    model = make_model(objective, order)
    predict = jax.jit(lambda batch: objective.predict(model, batch, key))
    base = predict(batch)
    last = np.broadcast_to(base.order, (EXAMPLES, 6))[:, -1]
    images = np.array(batch["image"])
    for image, (row, column) in enumerate(zip(*np.divmod(last, 3), strict=True)):
        images[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    changed = predict({**batch, "image": jnp.asarray(images)})
    np.testing.assert_array_equal(changed.order, base.order)
    moved = np.asarray(changed.error != base.error)
    np.testing.assert_array_equal(moved, np.arange(6) == last[:, None])


def test_random_orders_follow_from_the_key() -> None:
    objective, batch = OBJECTIVES["mse"], rgb_batch(EXAMPLES, 12, 127)  # which draws nothing else

    def losses(order: str) -> list[float]:
        model = make_model(objective, order)
        loss = jax.jit(lambda key: objective.loss(model, batch, key)[0])
        return [float(loss(jax.random.key(i))) for i in (0, 0, 1)]

    first, again, other = losses("random")
    assert first == again
    assert abs(first - other) > 1e-3
    assert len(set(losses("spiral"))) == 1


def test_noise_does_not_depend_on_whether_an_order_is_drawn() -> None:
    """So two runs that differ by their order see the same noise at each step."""
    objective, batch, key = OBJECTIVES["diffusion"], rgb_batch(EXAMPLES, 12, 127), jax.random.key(2)
    models = [make_model(objective, order) for order in ("raster", "random")]
    for model in models:
        model.patch_decoder = models[0].patch_decoder
        model.encode = lambda patches, grid, order: jnp.zeros((EXAMPLES, 6, 16))
    first, second = (float(objective.loss(model, batch, key)[0]) for model in models)
    assert first == second
