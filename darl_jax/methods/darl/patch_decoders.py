"""Patch decoders, from the backbone's output to pixels (Table 2).

For the squared error a decoder maps the output z_t to the patch x_t. For diffusion it takes the
corrupted patch x_t^s beside z_t and returns its estimate of the clean patch (or of the noise).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from darl_jax.nn.blocks import Block, Mlp, linear, make_norm, stack_blocks, unstack_blocks
from darl_jax.nn.dtypes import at_least_float32
from darl_jax.nn.vit import ViTConfig

KINDS = ("mlp", "transformer")

# (x^s, gamma) -> clean patch or noise, for draws of all patches.
Denoise = Callable[
    [Float[Array, "draw batch patch pixel"], Float[Array, "draw batch patch 1"]],
    Float[Array, "draw batch patch pixel"],
]


@dataclasses.dataclass(frozen=True)
class PatchDecoderConfig:
    """Config of a patch decoder; width, heads and MLP are the backbone's.

    Attributes:
      kind: 'mlp', or 'transformer' (diffusion only).
      layers: number of layers or blocks; 0 is a single linear layer.
      condition_on_gamma: whether gamma is one more channel of the corrupted patch (diffusion only).
    """

    kind: str = "mlp"
    layers: int = 0
    condition_on_gamma: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"objective.patch_decoder.kind={self.kind!r} is unknown; choose from {KINDS}"
            )
        if self.layers < 0:
            raise ValueError(f"objective.patch_decoder.layers={self.layers} must not be negative")


class ResidualMlp(nnx.Module):
    """x + mlp(norm(x)), a Transformer block without attention."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.norm = make_norm(config, rngs=rngs)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return x + self.mlp(self.norm(x))


class MlpHead(nnx.Module):
    """Residual MLP layers, norm, linear; with 0 layers only the linear."""

    def __init__(self, vit: ViTConfig, layers: int, patch_dim: int, *, rngs: nnx.Rngs):
        self.layers = layers
        if layers:
            self.blocks = stack_blocks(
                lambda key: ResidualMlp(vit, rngs=nnx.Rngs(key)), layers, rngs.params()
            )
            self.norm = make_norm(vit, rngs=rngs)
        self.to_pixels = linear(vit.width, patch_dim, dtype=vit.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch pixel"]:
        if self.layers:
            for block in unstack_blocks(self.blocks, self.layers):
                x = block(x)
            x = self.norm(x)
        return self.to_pixels(x)


class PatchDecoder(nnx.Module):
    """z -> patch, for the squared error (Section 3.2)."""

    def __init__(
        self, config: PatchDecoderConfig, vit: ViTConfig, *, patch_dim: int, rngs: nnx.Rngs
    ):
        self.head = MlpHead(vit, config.layers, patch_dim, rngs=rngs)

    def __call__(self, z: Float[Array, "*batch width"]) -> Float[Array, "*batch pixel"]:
        return self.head(z)


class DenoisingPatchDecoder(nnx.Module):
    """(z, x^s, gamma) -> clean patch or noise (Sections 3.1 and 4.1).

    'transformer': blocks with full attention over two tokens, z through a linear layer of its own
    and the embedded corrupted patch; settled here: the output is read at the corrupted patch's
    token, then norm and linear. 'mlp': residual MLP layers on z + embed(x^s). With 0 layers
    both are linear(z + embed(x^s)).
    """

    def __init__(
        self, config: PatchDecoderConfig, vit: ViTConfig, *, patch_dim: int, rngs: nnx.Rngs
    ):
        self.condition_on_gamma = config.condition_on_gamma
        self.layers = config.layers if config.kind == "transformer" else 0
        self.embedding = linear(
            patch_dim + config.condition_on_gamma, vit.width, dtype=vit.dtype, rngs=rngs
        )
        if self.layers:
            self.from_backbone = linear(vit.width, vit.width, dtype=vit.dtype, rngs=rngs)
            self.blocks = stack_blocks(
                lambda key: Block(vit, rngs=nnx.Rngs(key)), self.layers, rngs.params()
            )
            self.norm = make_norm(vit, rngs=rngs)
            self.to_pixels = linear(vit.width, patch_dim, dtype=vit.dtype, rngs=rngs)
        else:
            self.head = MlpHead(vit, config.layers, patch_dim, rngs=rngs)

    def __call__(
        self,
        z: Float[Array, "batch patch width"],
        x_s: Float[Array, "draw batch patch pixel"],
        gamma: Float[Array, "draw batch patch 1"],
    ) -> Float[Array, "draw batch patch pixel"]:
        """Denoises several draws per output of the backbone."""
        return self.denoiser(z)(x_s, gamma)

    def denoiser(self, z: Float[Array, "batch patch width"]) -> Denoise:
        """A denoiser for one z and many (x^s, gamma); computations on z alone are done once."""
        if self.layers:
            first, blocks = self.from_backbone(z), unstack_blocks(self.blocks, self.layers)

        def denoise(x_s: Array, gamma: Array) -> Array:
            if self.condition_on_gamma:
                x_s = jnp.concatenate([x_s, gamma.astype(x_s.dtype)], axis=-1)
            x = self.embedding(x_s)
            if not self.layers:
                return self.head(z + x)
            token = first
            for block in blocks:
                token, x = two_token_block(block, token, x)
            return self.to_pixels(self.norm(x))

        return denoise


def two_token_block(
    block: Block,
    z: Float[Array, "*batch patch width"],
    x: Float[Array, "draw batch patch width"],
) -> tuple[Float[Array, "draw batch patch width"], Float[Array, "draw batch patch width"]]:
    """Transformer block over the two-token sequences [z, x], each token an array of its own.

    Separate arrays let computations common to all draws be done once, and the last block's on z be
    dropped. The softmax over two keys is a sigmoid: w = sigmoid(q . (k_z - k_x) / sqrt(d)), output
    = v_x + w (v_z - v_x), a few fused FLOPs an element; an attention kernel would pad the 2 tokens
    to its block size.
    """
    attention = block.attention
    normed = block.norm_attention(z), block.norm_attention(x)
    (key_z, value_z), (key_x, value_x) = (attention.keys_values(y) for y in normed)
    key_difference = at_least_float32(key_z - key_x) * key_z.shape[-1] ** -0.5
    value_difference = value_z - value_x

    def update(token: Array, norm: Array) -> Array:
        query = at_least_float32(attention.queries(norm))
        logit = jnp.sum(query * key_difference, axis=-1, keepdims=True)
        weight_of_z = jax.nn.sigmoid(logit).astype(value_x.dtype)
        mixed = value_x + weight_of_z * value_difference
        return block.finish(token, attention.out(mixed.reshape(*mixed.shape[:-2], -1)))

    return update(z, normed[0]), update(x, normed[1])
