"""Counted FLOPs against the multiplications in the jaxpr of a model written out plainly."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.methods.transfer.classifier import Classifier
from darl_jax.methods.transfer.probe_model import Probes, ProbesConfig
from darl_jax.nn import flops
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.planning.matmul_flops import matmul_flops

BATCH, HEADS = 3, 2
WIDTH, DEPTH, MLP_DIM, TOKENS, PATCH_DIM = 12, 3, 20, 7, 10
SHAPE: dict[str, Any] = {
    "width": WIDTH,
    "depth": DEPTH,
    "mlp_dim": MLP_DIM,
    "tokens": TOKENS,
    "patch_dim": PATCH_DIM,
}
VIT = ViTConfig(
    width=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_dim=MLP_DIM, positions="none", dtype="float32"
)


def _weights(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape) / shape[-2] ** 0.5


def _block_weights() -> dict[str, jax.Array]:
    weights = {name: _weights(WIDTH, WIDTH) for name in "qkvo"}
    return weights | {"up": _weights(WIDTH, MLP_DIM), "down": _weights(MLP_DIM, WIDTH)}


def _mlp(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x + jax.nn.gelu(x @ w["up"]) @ w["down"]


def _causal_block(w: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    q, k, v = (
        (x @ w[name]).reshape(*x.shape[:-1], HEADS, -1).transpose(0, 2, 1, 3) for name in "qkv"
    )
    logits = q @ k.swapaxes(-1, -2)
    logits = jnp.where(jnp.tril(jnp.ones((TOKENS, TOKENS), bool)), logits, -jnp.inf)
    attended = (jax.nn.softmax(logits) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
    return _mlp(w, x + attended @ w["o"])


def _two_token_block(
    w: dict[str, jax.Array], z: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Full attention over [z, x]; z has no axis of draws in the first block, x always has one."""
    keys, values = ([y @ w[name] for y in (z, x)] for name in "kv")

    def read(token: jax.Array) -> jax.Array:
        query = token @ w["q"]
        logits = [jnp.sum(query * key, axis=-1, keepdims=True) for key in keys]
        share = jax.nn.softmax(jnp.stack(jnp.broadcast_arrays(*logits)), axis=0)
        return _mlp(w, token + (share[0] * values[0] + share[1] * values[1]) @ w["o"])

    return read(z), read(x)


def _parameters(kind: str, layers: int, objective: str, gamma: bool) -> dict:
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * DEPTH), _block_weights())
    return {
        "patch": _weights(PATCH_DIM, WIDTH),
        "blocks": stacked,
        "corrupted": _weights(PATCH_DIM + gamma, WIDTH) if objective == "diffusion" else None,
        "z": _weights(WIDTH, WIDTH) if kind == "transformer" and layers else None,
        "decoder": [_block_weights() for _ in range(layers)],
        "pixels": _weights(WIDTH, PATCH_DIM),
    }


def _model(params: dict, patches: jax.Array, x_s: jax.Array | None) -> jax.Array:
    """Backbone by scan; the decoder that `params` have; x_s is (draw, batch, token, pixel)."""
    embedded = patches[:, :-1] @ params["patch"]
    x = jnp.concatenate([jnp.ones((BATCH, 1, WIDTH)), embedded], axis=1)
    z, _ = jax.lax.scan(lambda x, w: (_causal_block(w, x), None), x, params["blocks"])
    if x_s is None:
        y = z
    elif params["z"] is None:
        y = z + x_s @ params["corrupted"]
    else:
        z, y = z @ params["z"], x_s @ params["corrupted"]
        for w in params["decoder"]:
            z, y = _two_token_block(w, z, y)
        return y @ params["pixels"]
    for w in params["decoder"]:
        y = _mlp(w, y)
    return y @ params["pixels"]


CASES = [
    ("mse", "mlp", 0, False, 1),
    ("mse", "mlp", 2, False, 1),
    ("diffusion", "mlp", 0, False, 1),
    ("diffusion", "mlp", 2, True, 3),
    ("diffusion", "transformer", 0, False, 2),
    ("diffusion", "transformer", 1, False, 1),
    ("diffusion", "transformer", 1, True, 4),
    ("diffusion", "transformer", 2, True, 1),
    ("diffusion", "transformer", 2, False, 4),
    ("diffusion", "transformer", 5, True, 3),
]


@pytest.mark.parametrize(("objective", "kind", "layers", "gamma", "draws"), CASES)
def test_counted_flops_are_the_multiplications_in_the_jaxpr(
    objective: str, kind: str, layers: int, gamma: bool, draws: int
) -> None:
    params = _parameters(kind, layers, objective, gamma)
    patches = jnp.ones((BATCH, TOKENS, PATCH_DIM))
    x_s = None
    if objective == "diffusion":
        x_s = jnp.ones((draws, BATCH, TOKENS, PATCH_DIM + gamma))
    counted = flops.forward_flops(
        **SHAPE,
        objective=objective,
        decoder_kind=kind,
        decoder_layers=layers,
        condition_on_gamma=gamma,
        noise_draws=draws,
    )
    assert BATCH * counted == matmul_flops(_model, params, patches, x_s)

    def step(params: dict) -> jax.Array:
        return jax.grad(lambda p: jnp.sum(_model(p, patches, x_s) ** 2))(params)

    # The convention counts gradients with respect to pixels, which autodiff does not form.
    unformed = 2 * (TOKENS - 1) * PATCH_DIM * WIDTH
    if objective == "diffusion":
        unformed += draws * 2 * TOKENS * (PATCH_DIM + gamma) * WIDTH
    expected = flops.train_step_flops(counted, BATCH) - BATCH * unformed
    assert matmul_flops(step, params) == expected


@pytest.mark.parametrize(
    ("shape", "gmac"),
    # Multiply-adds of the supervised ViT at 224 px as timm's results list them: they have a class
    # token beside all patches and a head of 1000 classes instead of the pixels.
    [
        ((768, 12, 3072, 196, 768), 17.58),
        ((1024, 24, 4096, 196, 768), 61.60),
        ((1280, 32, 5120, 256, 588), 167.4),
    ],
)
def test_backbones_cost_what_the_literature_says(shape: tuple[int, ...], gmac: float) -> None:
    sizes: dict[str, Any] = dict(zip(SHAPE, shape, strict=True))
    counted = flops.forward_flops(**sizes, objective="mse")
    assert counted / 2e9 == pytest.approx(gmac, rel=0.01)


def test_generators_decoder_costs_what_one_of_its_evaluations_should() -> None:
    vit_l8: dict[str, Any] = {
        "width": 1024,
        "depth": 24,
        "mlp_dim": 4096,
        "tokens": 64,
        "patch_dim": 192,
    }
    backbone_only = flops.forward_flops(**vit_l8, objective="mse") - 64 * 2 * 1024 * 192
    whole = flops.forward_flops(
        **vit_l8,
        objective="diffusion",
        decoder_kind="transformer",
        decoder_layers=8,
        condition_on_gamma=True,
    )
    # Appendix F: two tokens through eight blocks of 12 width^2 weights, less the share of the last
    # block that is not read (10 width^2), and the layers around them.
    weights = 2 * 8 * 12 * 1024**2 - 10 * 1024**2 + 1024**2 + 193 * 1024 + 1024 * 192
    assert whole - backbone_only == 64 * 2 * weights


@pytest.mark.parametrize(
    "wrong",
    [
        {"objective": "mae"},
        {"objective": "diffusion", "decoder_kind": "unet"},
        {"objective": "mse", "decoder_kind": "transformer"},
        {"objective": "mse", "condition_on_gamma": True},
        {"objective": "mse", "noise_draws": 2},
    ],
)
def test_a_decoder_that_does_not_exist_is_an_error(wrong: dict) -> None:
    with pytest.raises(ValueError, match="objective"):
        flops.forward_flops(**SHAPE, **wrong)


def test_peak_of_a_device_without_one_is_none() -> None:
    assert flops.peak_flops(jax.devices("cpu")[0]) is None


def test_jaxpr_counter_agrees_with_xlas_cost_analysis_without_loops() -> None:
    def chain(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        y = jnp.einsum("btd,dhk->bhtk", x, a)
        return jnp.einsum("bhtk,bhsk->bhts", y, y) @ jnp.broadcast_to(b, (2, 3, *b.shape))

    args = (jnp.ones((2, 5, 8)), jnp.ones((8, 3, 4)), jnp.ones((5, 6)))
    cost = jax.jit(chain).lower(*args).compile().cost_analysis()
    assert cost is not None
    assert matmul_flops(chain, *args) == cost["flops"]
    assert matmul_flops(chain, *args) == 2 * (2 * 5 * 8 * 12 + 6 * 5 * 5 * 4 + 6 * 5 * 5 * 6)


def test_jaxpr_counter_multiplies_scans_drops_dead_code_and_counts_recomputation() -> None:
    w = jnp.ones((4, 4))
    x = jnp.ones((3, 4))
    once = 2 * 3 * 4 * 4

    def scanned(x: jax.Array) -> jax.Array:
        y, _ = jax.lax.scan(lambda c, _: (jnp.sin(c @ w), c @ w.T), x, length=5)
        return y

    assert matmul_flops(scanned, x) == 5 * once
    assert matmul_flops(jax.jit(scanned), x) == 5 * once
    assert matmul_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ w, jnp.sin, x), x) == once

    def body(x: jax.Array) -> jax.Array:
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    assert matmul_flops(jax.value_and_grad(body), x) == 4 * once
    assert matmul_flops(jax.value_and_grad(jax.checkpoint(body)), x) == 6 * once
    with pytest.raises(ValueError, match="while loop"):
        matmul_flops(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ w, x), x)


@pytest.mark.parametrize("order", ["raster", "random"])
def test_two_streams_multiply_what_is_counted(order: str) -> None:
    vit = dataclasses.replace(
        VIT, patch_size=1, positions="learnable", two_stream=True, order=OrderConfig(order)
    )
    model = DARL(
        vit,
        PatchDecoderConfig("mlp", 0),
        denoising=False,
        grid=(1, TOKENS),
        channels=PATCH_DIM,
        rngs=nnx.Rngs(0),
    )
    drawn = model.draw_order(jax.random.key(0), BATCH)
    patches = jnp.zeros((BATCH, TOKENS, PATCH_DIM))
    made = matmul_flops(lambda x: model.patch_decoder(model.encode(x, order=drawn)), patches)
    assert made == BATCH * flops.forward_flops(**SHAPE, objective="mse", two_stream=True)


# --- transfer -------------------------------------------------------------------------------------

PATCHES, CLASSES = 6, 5


def _backbone_flops() -> int:
    return flops.backbone_flops(
        width=WIDTH, depth=DEPTH, mlp_dim=MLP_DIM, patches=PATCHES, patch_dim=PATCH_DIM
    )


def test_a_classifier_multiplies_what_is_counted() -> None:
    vit = dataclasses.replace(VIT, patch_size=1)
    model = Classifier(vit, num_classes=CLASSES, grid=(2, 3), channels=PATCH_DIM, rngs=nnx.Rngs(0))
    patches = jnp.zeros((BATCH, PATCHES, PATCH_DIM))
    made = matmul_flops(lambda x: model(x, mask="full", pooling="mean", grid=(2, 3)), patches)
    head = flops.probe_flops(
        kind="linear", width=WIDTH, num_heads=HEADS, patches=PATCHES, num_classes=CLASSES
    )
    assert made == BATCH * (_backbone_flops() + head)


@pytest.mark.parametrize("kind", ["linear", "attentive"])
def test_probes_multiply_what_is_counted(kind: str) -> None:
    vit = dataclasses.replace(VIT, patch_size=1)
    model = Probes(
        vit,
        ProbesConfig(kind=kind),
        num_classes=CLASSES,
        grid=(2, 3),
        channels=PATCH_DIM,
        rngs=nnx.Rngs(0),
    )
    patches = jnp.zeros((BATCH, PATCHES, PATCH_DIM))
    made = matmul_flops(lambda x: model(x, mask="causal", grid=(2, 3))[0], patches)
    probe = flops.probe_flops(
        kind=kind, width=WIDTH, num_heads=HEADS, patches=PATCHES, num_classes=CLASSES
    )
    once = DEPTH * 2 * WIDTH**2 if kind == "attentive" else 0  # query times key, for a batch
    assert made == BATCH * (_backbone_flops() + DEPTH * probe) + once


@pytest.mark.parametrize(
    ("kind", "layers", "gamma"),
    [("mlp", 0, False), ("mlp", 2, True), ("transformer", 1, False), ("transformer", 3, True)],
)
def test_making_an_image_costs_a_forward_pass_with_as_many_draws_as_steps(kind, layers, gamma):
    decoder = {"decoder_kind": kind, "decoder_layers": layers, "condition_on_gamma": gamma}
    shape = {key: value for key, value in SHAPE.items() if key != "tokens"}
    for steps in (1, 5):
        made = flops.sampling_flops(**shape, **decoder, steps=[steps] * TOKENS)
        forward = flops.forward_flops(**SHAPE, **decoder, objective="diffusion", noise_draws=steps)
        assert made == forward
    uneven = flops.sampling_flops(**shape, **decoder, steps=[3, 7, *[5] * (TOKENS - 2)])
    assert uneven == made
