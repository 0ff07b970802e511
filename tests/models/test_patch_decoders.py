"""Patch decoders: the two-token Transformer against the general block, draws, gamma."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.models.patch_decoders import (
    DenoisingPatchDecoder,
    PatchDecoder,
    PatchDecoderConfig,
    two_token_block,
    unstack_blocks,
)
from darl_jax.models.vit import Block, ViTConfig

VIT = ViTConfig(width=16, depth=1, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")
PATCH_DIM = 12
DRAWS, BATCH, PATCHES = 3, 2, 5


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(draws: int = DRAWS) -> tuple[jax.Array, jax.Array, jax.Array]:
    """z, x_s and gamma."""
    gamma = jnp.asarray(
        np.random.default_rng(3).uniform(size=(draws, BATCH, PATCHES, 1)), jnp.float32
    )
    return (
        normal(1, BATCH, PATCHES, VIT.width),
        normal(2, draws, BATCH, PATCHES, PATCH_DIM),
        gamma,
    )


def shaken(module: nnx.Module) -> nnx.Module:
    """With every parameter moved, so that no bias is 0 and no scale is 1."""
    graphdef, state = nnx.split(module)
    leaves, structure = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [p + 0.3 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, moved))


@pytest.mark.parametrize("layers_of_z", ["shared", "per draw"])
def test_the_two_token_block_equals_the_general_block_on_sequences_of_two(layers_of_z: str) -> None:
    """In the first block z is common to all draws, in later ones each draw has its own."""
    block = shaken(Block(VIT, rngs=nnx.Rngs(0)))
    x = normal(4, DRAWS, BATCH, PATCHES, VIT.width)
    shape = (BATCH, PATCHES, VIT.width)
    z = 2 * normal(5, *(shape if layers_of_z == "shared" else x.shape))

    def by_two_tokens(z: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.stack(two_token_block(block, z, x), axis=-2)

    def by_general_block(z: jax.Array, x: jax.Array) -> jax.Array:
        pairs = jnp.stack([jnp.broadcast_to(z, x.shape), x], axis=-2)
        out = block(pairs.reshape(-1, 2, VIT.width), mask="full", angles=None)
        return out.reshape(pairs.shape)

    cotangent = normal(6, *x.shape[:-1], 2, VIT.width)
    results = []
    for function in (by_two_tokens, by_general_block):
        out, vjp = jax.vjp(function, z, x)
        results.append((out, *vjp(cotangent)))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
@pytest.mark.parametrize("layers", [0, 1, 2, 4, 8])
def test_a_denoising_decoder_sees_z_x_s_and_gamma_only_where_it_is_conditioned(
    kind: str, layers: int
) -> None:
    z, x_s, gamma = inputs()
    for conditioned in (False, True):
        config = PatchDecoderConfig(kind, layers, conditioned)
        decoder = DenoisingPatchDecoder(config, VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0))
        run = jax.jit(decoder.__call__)
        base = run(z, x_s, gamma)
        assert base.shape == (DRAWS, BATCH, PATCHES, PATCH_DIM)

        def moved(*arguments: jax.Array, base=base, run=run) -> np.ndarray:
            return np.abs(np.asarray(run(*arguments) - base)).max(axis=-1) > 1e-6

        assert moved(z, x_s, gamma + 0.5).any() == conditioned
        # Each patch of each draw is a sequence of its own.
        only = np.zeros((DRAWS, BATCH, PATCHES), bool)
        only[1, 0, 2] = True
        np.testing.assert_array_equal(moved(z, x_s.at[1, 0, 2].add(1.0), gamma), only)
        only[:, 0, 2] = True
        np.testing.assert_array_equal(moved(z.at[0, 2].add(1.0), x_s, gamma), only)


@pytest.mark.parametrize("config", [("mlp", 2), ("transformer", 2)])
def test_several_draws_in_one_pass_equal_single_passes(config: tuple[str, int]) -> None:
    decoder = shaken(
        DenoisingPatchDecoder(
            PatchDecoderConfig(*config, True), VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0)
        )
    )
    z, x_s, gamma = inputs()
    together = decoder(z, x_s, gamma)
    for k in range(DRAWS):
        alone = decoder(z, x_s[k : k + 1], gamma[k : k + 1])
        np.testing.assert_allclose(together[k], alone[0], rtol=0, atol=1e-5 * np.abs(alone).max())


def layer_norm(x: np.ndarray, norm: nnx.LayerNorm) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(norm.scale[...], np.float64) + np.asarray(norm.bias[...], np.float64)


def linear(x: np.ndarray, layer: nnx.Linear) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_without_layers_a_denoising_decoder_is_linear_on_z_plus_the_embedded_patch(
    kind: str,
) -> None:
    decoder = shaken(
        DenoisingPatchDecoder(
            PatchDecoderConfig(kind, 0, True), VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0)
        )
    )
    z, x_s, gamma = inputs()
    corrupted = np.concatenate([x_s, gamma], axis=-1).astype(np.float64)
    expected = linear(np.asarray(z) + linear(corrupted, decoder.embedding), decoder.head.to_pixels)
    np.testing.assert_allclose(decoder(z, x_s, gamma), expected, atol=2e-5)


def test_the_transformer_reads_its_output_at_the_corrupted_patch() -> None:
    """Three blocks of the general kind over [from_backbone(z), embed(x_s)], then norm, linear."""
    decoder = shaken(
        DenoisingPatchDecoder(
            PatchDecoderConfig("transformer", 3), VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0)
        )
    )
    z, x_s, gamma = inputs()
    tokens = jnp.stack(
        [
            jnp.broadcast_to(decoder.from_backbone(z), (DRAWS, *z.shape)),
            decoder.embedding(x_s),
        ],
        axis=-2,
    ).reshape(-1, 2, VIT.width)
    for block in unstack_blocks(decoder.blocks, 3):
        tokens = block(tokens, mask="full", angles=None)
    at_patch = np.asarray(tokens[:, 1], np.float64)
    expected = linear(layer_norm(at_patch, decoder.norm), decoder.to_pixels)
    got = decoder(z, x_s, gamma).reshape(-1, PATCH_DIM)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_squared_errors_decoder_is_residual_layers_norm_and_linear() -> None:
    plain = shaken(PatchDecoder(PatchDecoderConfig(), VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0)))
    z = normal(8, BATCH, PATCHES, VIT.width)
    np.testing.assert_allclose(
        plain(z), linear(np.asarray(z, np.float64), plain.head.to_pixels), atol=2e-5
    )
    deep = shaken(
        PatchDecoder(PatchDecoderConfig("mlp", 2), VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0))
    )
    x = np.asarray(z, np.float64)
    for block in unstack_blocks(deep.head.blocks, 2):
        hidden = linear(layer_norm(x, block.norm), block.mlp.up)
        hidden = np.asarray(jax.nn.gelu(jnp.asarray(hidden, jnp.float32), approximate=False))
        x = x + linear(hidden, block.mlp.down)
    expected = linear(layer_norm(x, deep.head.norm), deep.head.to_pixels)
    np.testing.assert_allclose(deep(z), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_bfloat16_decoder_keeps_gamma_and_is_near_float32() -> None:
    config = PatchDecoderConfig("transformer", 1, True)
    exact = DenoisingPatchDecoder(config, VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0))
    half = DenoisingPatchDecoder(
        config, dataclasses.replace(VIT, dtype="bfloat16"), patch_dim=PATCH_DIM, rngs=nnx.Rngs(0)
    )
    z, x_s, gamma = inputs()
    got = half(z.astype(jnp.bfloat16), x_s, gamma)
    assert got.dtype == jnp.bfloat16
    # Outputs of about unit size, some ten roundings by 2^-9.
    assert np.abs(np.asarray(got, np.float32) - exact(z, x_s, gamma)).max() < 0.06


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear",), "patch_decoder.kind='linear' is unknown"),
        (("mlp", -1), "patch_decoder.layers=-1 must not be negative"),
    ],
)
def test_an_unknown_decoder_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchDecoderConfig(*arguments)


@pytest.mark.parametrize(
    "config", [PatchDecoderConfig("transformer", 1), PatchDecoderConfig("mlp", 0, True)]
)
def test_the_squared_error_refuses_what_only_diffusion_has(config: PatchDecoderConfig) -> None:
    with pytest.raises(ValueError, match="objective.name='diffusion'"):
        PatchDecoder(config, VIT, patch_dim=PATCH_DIM, rngs=nnx.Rngs(0))
