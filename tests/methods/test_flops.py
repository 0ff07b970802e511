"""Counted FLOPs against the multiplications in the jaxpr of the method's own loss."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from darl_jax.config import VIT_SIZES
from darl_jax.methods.aim.head import HeadConfig
from darl_jax.methods.aim.objective import AIMConfig, AIMMethod
from darl_jax.methods.darl.diffusion import DiffusionConfig
from darl_jax.methods.darl.flops import forward_flops
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.methods.mae.method import MAEConfig
from darl_jax.methods.mae.model import DecoderConfig
from darl_jax.methods.nepa.next_embedding import NextEmbeddingConfig
from darl_jax.methods.transfer.classification import ClassificationConfig
from darl_jax.methods.transfer.probe_model import ProbesConfig
from darl_jax.nn.lora import LoRAConfig
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.planning.matmul_flops import matmul_flops
from darl_jax.training.trained import join_trained, split_trained
from tests.methods_on_images import images, method

BATCH, CLASSES = 2, 5
VIT = ViTConfig(width=16, depth=3, num_heads=2, mlp_dim=24, patch_size=4, dtype="float32")
RGB = images(16, (0.5,) * 3, (0.5,) * 3)

MAE_DECODER = DecoderConfig(width=12, depth=2, num_heads=3, mlp_dim=20)


def traced(of: Any, *, gradient: bool = False) -> int:
    """Multiplications of the loss of a batch, or of its gradient in what is trained."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: of.init(nnx.Rngs(0))))
    batch = {
        name: jax.ShapeDtypeStruct((BATCH, *feature.shape), feature.dtype)
        for name, feature in of.inputs.items()
    } | {"mask": jax.ShapeDtypeStruct((BATCH,), jnp.bool_)}

    def loss(params, batch, key):
        return of.loss(nnx.merge(graphdef, params), batch, key)[0]

    if gradient:
        trained, frozen = split_trained(nnx.to_pure_dict(params), of.trains)
        slope = jax.grad(lambda part, rest, *args: loss(join_trained(part, rest), *args))
        return matmul_flops(slope, trained, frozen, batch, jax.random.key(0))
    return matmul_flops(loss, params, batch, jax.random.key(0))


def diffusion(*decoder: Any, draws: int = 1) -> DiffusionConfig:
    return DiffusionConfig(draws=draws, patch_decoder=PatchDecoderConfig(*decoder))


def aim(kind: str) -> AIMConfig:
    return AIMConfig(head=HeadConfig(kind, depth=3, width=8, num_heads=2))


@pytest.mark.parametrize(
    ("objective", "model"),
    [
        (MSEConfig(), {}),
        (MSEConfig(patch_decoder=PatchDecoderConfig(layers=2)), {}),
        (MSEConfig(two_stream=True), {"positions": "learnable"}),
        (MSEConfig(two_stream=True), {"positions": "learnable", "order": OrderConfig("random")}),
        (diffusion("mlp", 0), {}),
        (diffusion("mlp", 2, True, draws=3), {}),
        (diffusion("transformer", 0, draws=3), {}),
        (diffusion("transformer", 1, True, draws=3), {}),
        (diffusion("transformer", 4, draws=2), {}),
        (NextEmbeddingConfig(), {}),
        (aim("none"), AIMMethod.model_defaults),
        (aim("mlp"), AIMMethod.model_defaults),
        (aim("transformer"), AIMMethod.model_defaults),
        (ClassificationConfig(num_classes=CLASSES), {}),
        (
            ClassificationConfig(num_classes=CLASSES),
            {"mlp": "swiglu", "norm": "rms", "patch_norm": "rms", "start_token": "none"},
        ),
        (
            ClassificationConfig(num_classes=CLASSES),
            {"qk_norm": "scale", "layer_scale": 0.1, "attention_bias": False},
        ),
        (MAEConfig(decoder=MAE_DECODER, mask_ratio=0.7), {"positions": "sincos2d"}),
        (MAEConfig(decoder=MAE_DECODER), {"start_token": "none", "mlp": "swiglu"}),
    ],
)
def test_a_step_is_three_times_the_multiplications_of_the_loss(objective, model) -> None:
    of = method(objective, VIT, RGB, **model)
    assert BATCH * of.flops() == 3 * traced(of)


def test_a_frozen_patch_embedding_has_no_backward_pass():
    frozen = ClassificationConfig(num_classes=CLASSES, freeze_patch_embedding=True)
    of = method(frozen, VIT, RGB)
    embedding = 16 * 2 * 48 * VIT.width  # 4 x 4 patches of 4 x 4 RGB pixels
    assert BATCH * of.flops() == 3 * traced(of) - 2 * BATCH * embedding


@pytest.mark.parametrize("keys", [{}, {"blocks": (1, 2), "learning_rates": (0.1, 0.2, 0.3)}])
@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_of_probes_the_backbone_has_no_backward_pass_and_ends_with_the_last_block_read(
    kind: str, keys: dict[str, Any]
) -> None:
    of = method(ProbesConfig(kind=kind, num_classes=CLASSES, **keys), VIT, RGB)
    number, depth = (6, 2) if keys else (VIT.depth, VIT.depth)
    # An attentive probe's query meets the key's matrix once for a batch, which is not counted.
    once = number * 2 * VIT.width**2 if kind == "attentive" else 0
    forward, backbone = traced(of) - once, BATCH * of.backbone_flops(depth)
    assert BATCH * of.flops() == backbone + 3 * (forward - backbone)


@pytest.mark.parametrize("names", [("query", "value", "out"), ("key", "up", "gate")])
def test_frozen_weights_beside_adapters_have_no_gradient(names: tuple[str, ...]) -> None:
    """The whole step: forward, and backward to the adapters and the head alone."""
    objective = ClassificationConfig(num_classes=CLASSES, lora=LoRAConfig(names, rank=3))
    of = method(objective, VIT, RGB, mlp="swiglu", attention="xla")
    assert BATCH * of.flops() == traced(of, gradient=True)


@pytest.mark.parametrize(
    ("size", "patch_size", "gmac"),
    # Multiply-adds of the supervised ViT at 224 px as timm's results list them: they have a class
    # token beside all patches and a head of 1000 classes instead of the pixels.
    [("B", 16, 17.58), ("L", 16, 61.60), ("H", 14, 167.4)],
)
def test_backbones_cost_what_the_literature_says(size: str, patch_size: int, gmac: float) -> None:
    rgb = images(224, (0.5,) * 3, (0.5,) * 3)
    counted = method(MSEConfig(), VIT_SIZES[size], rgb, patch_size=patch_size).flops()
    assert counted / 6e9 == pytest.approx(gmac, rel=0.01)


VIT_L8 = ViTConfig(width=1024, depth=24, num_heads=16, mlp_dim=4096, patch_size=8)


@pytest.mark.parametrize(
    ("kind", "layers", "gamma"),
    [("mlp", 0, False), ("mlp", 2, True), ("transformer", 1, False), ("transformer", 3, True)],
)
def test_making_an_image_costs_a_forward_pass_with_as_many_draws_as_steps(kind, layers, gamma):
    decoder = PatchDecoderConfig(kind, layers, condition_on_gamma=gamma)
    each, same, mixed = (
        forward_flops(VIT_L8, decoder, tokens=64, patch_dim=192, denoising=True, draws=draws)
        for draws in (5, [5] * 64, [3, 7, *[5] * 62])
    )
    assert each == same == mixed
