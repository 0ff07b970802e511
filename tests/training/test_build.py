"""The FLOPs that a run reports are those of the step that it runs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from darl_jax.config import TrainConfig
from darl_jax.data.images.config import ImagesConfig
from darl_jax.methods.darl.diffusion import DiffusionConfig
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn import flops
from darl_jax.nn.vit import ViTConfig
from darl_jax.planning.matmul_flops import matmul_flops
from darl_jax.training import build

VIT = ViTConfig(width=16, depth=3, num_heads=2, mlp_dim=24, patch_size=4, dtype="float32")


@pytest.mark.parametrize(
    ("objective", "decoder"),
    [
        (MSEConfig(), PatchDecoderConfig()),
        (MSEConfig(), PatchDecoderConfig(layers=2)),
        (DiffusionConfig(), PatchDecoderConfig("mlp", 2)),
        (DiffusionConfig(draws=3), PatchDecoderConfig("transformer", 0)),
        (DiffusionConfig(draws=3), PatchDecoderConfig("transformer", 1, True)),
        (DiffusionConfig(draws=2), PatchDecoderConfig("transformer", 4)),
    ],
)
def test_counted_flops_are_those_of_the_traced_loss(objective, decoder):
    config = TrainConfig(
        batch_size=2,
        model=VIT,
        patch_decoder=decoder,
        objective=objective,
        data=ImagesConfig(source="digits", image_size=16),
    )
    model = nnx.eval_shape(lambda: config.method.init(nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    batch = {
        "image": jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((2,), jnp.bool_),
    }

    def loss(params, batch, key):
        return config.method(nnx.merge(graphdef, params), batch, key)[0]

    # Outside the convention: RoPE exchanges channel pairs of each block's query and key by a
    # product of (image, token, head) rows, the start token's too, with a square matrix.
    head_dim = VIT.width // VIT.num_heads
    rotations = 2 * VIT.depth * (2 * 2 * 16 * VIT.num_heads * head_dim**2)
    traced = matmul_flops(loss, params, batch, jax.random.key(0)) - rotations
    assert config.batch_size * config.method.flops() == flops.train_step_flops(traced // 2, 2)
    assert build.step_flops(dataclasses.replace(config, batch_size=4)) == 6 * traced
