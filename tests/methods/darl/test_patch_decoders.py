"""Patch decoders: the two-token Transformer against the general block, draws, gamma."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from darl_jax.methods.darl.patch_decoders import (
    DenoisingPatchDecoder,
    PatchDecoder,
    PatchDecoderConfig,
    two_token_block,
    unstack_blocks,
)
from darl_jax.nn.blocks import Block
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.state import parameters
from tests.float64 import dense, layer_norm
from tests.random_modules import random_module

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


def value_and_vjp(function: Any, z: jax.Array, x: jax.Array, cotangent: jax.Array) -> Any:
    out, vjp = jax.vjp(function, z, x)
    return out, *vjp(cotangent)


def denoising_decoder(kind: str, layers: int, conditioned: bool = False) -> DenoisingPatchDecoder:
    config = PatchDecoderConfig(kind, layers, conditioned)
    return random_module(
        lambda rngs: DenoisingPatchDecoder(config, VIT, patch_dim=PATCH_DIM, rngs=rngs)
    )


@pytest.mark.parametrize("layers_of_z", ["shared", "per draw"])
def test_the_two_token_block_equals_the_general_block_on_sequences_of_two(layers_of_z: str) -> None:
    """In the first block z is common to all draws, in later ones each draw has its own."""
    block = random_module(lambda rngs: Block(VIT, rngs=rngs))
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
        results.append(jax.jit(functools.partial(value_and_vjp, function))(z, x, cotangent))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "layers"), [("mlp", 2), ("transformer", 1), ("transformer", 2)])
def test_a_denoising_decoder_sees_z_x_s_and_gamma_only_where_it_is_conditioned(
    kind: str, layers: int
) -> None:
    z, x_s, gamma = inputs()
    for conditioned in (False, True):
        decoder = denoising_decoder(kind, layers, conditioned)
        run = jax.jit(lambda z, x_s, gamma, decoder=decoder: decoder(z, x_s, gamma))
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
        other_z = z.at[0, 2].add(normal(9, VIT.width))
        np.testing.assert_array_equal(moved(other_z, x_s, gamma), only)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_without_layers_a_denoising_decoder_is_linear_on_z_plus_the_embedded_patch(
    kind: str,
) -> None:
    decoder = denoising_decoder(kind, 0, True)
    z, x_s, gamma = inputs()
    corrupted = np.concatenate([x_s, gamma], axis=-1).astype(np.float64)
    params = parameters(decoder)
    hidden = np.asarray(z) + dense(params["embedding"], corrupted)
    expected = dense(params["head"]["to_pixels"], hidden)
    np.testing.assert_allclose(decoder(z, x_s, gamma), expected, atol=2e-5)


def test_the_transformer_reads_its_output_at_the_corrupted_patch() -> None:
    """Three blocks of the general kind over [from_backbone(z), embed(x_s)], then norm, linear."""
    decoder = denoising_decoder("transformer", 3)
    z, x_s, gamma = inputs()

    @jax.jit
    def outputs(z: jax.Array, x_s: jax.Array) -> tuple[jax.Array, jax.Array]:
        of_backbone = jnp.broadcast_to(decoder.from_backbone(z), (DRAWS, *z.shape))
        tokens = jnp.stack([of_backbone, decoder.embedding(x_s)], axis=-2)
        tokens = tokens.reshape(-1, 2, VIT.width)
        for block in unstack_blocks(decoder.blocks, 3):
            tokens = block(tokens, mask="full", angles=None)
        return decoder(z, x_s, gamma), tokens[:, 1]

    got, at_patch = outputs(z, x_s)
    params = parameters(decoder)
    expected = dense(params["to_pixels"], layer_norm(params["norm"], at_patch))
    got = got.reshape(-1, PATCH_DIM)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_squared_errors_decoder_is_residual_layers_norm_and_linear() -> None:
    decoder = random_module(
        lambda rngs: PatchDecoder(PatchDecoderConfig("mlp", 2), VIT, patch_dim=PATCH_DIM, rngs=rngs)
    )
    z = normal(8, BATCH, PATCHES, VIT.width)
    x, head = np.asarray(z, np.float64), parameters(decoder)["head"]
    for i in range(2):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], head["blocks"])
        hidden = dense(block["mlp"]["up"], layer_norm(block["norm"], x))
        x = x + dense(block["mlp"]["down"], 0.5 * hidden * special.erfc(-hidden / np.sqrt(2)))
    expected = dense(head["to_pixels"], layer_norm(head["norm"], x))
    np.testing.assert_allclose(decoder(z), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_bfloat16_decoder_keeps_gamma_and_is_near_float32() -> None:
    config, arguments = PatchDecoderConfig("transformer", 1, True), inputs()

    def output(dtype: str) -> jax.Array:
        vit = dataclasses.replace(VIT, dtype=dtype)
        decoder = random_module(
            lambda rngs: DenoisingPatchDecoder(config, vit, patch_dim=PATCH_DIM, rngs=rngs)
        )
        run = jax.jit(lambda z, x_s, gamma: decoder(z.astype(dtype), x_s, gamma))
        return run(*arguments)

    got = output("bfloat16")
    assert got.dtype == jnp.bfloat16
    # Outputs of about unit size, some ten roundings by 2^-9.
    assert np.abs(np.asarray(got, np.float32) - output("float32")).max() < 0.06
