"""Transformer on text (section 5 and appendix D of arXiv 2110.02037)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.methods.ardm.networks.base import Network, NetworkConfig, Problem, sinusoid
from darl_jax.nn.blocks import (
    Block,
    TransformerConfig,
    linear,
    make_norm,
    scan_blocks,
    stack_blocks,
)
from darl_jax.nn.dtypes import DTYPES
from darl_jax.nn.flops import block_flops
from darl_jax.nn.flops import linear as linear_flops
from darl_jax.nn.mesh_axes import pin_batch


@dataclasses.dataclass(frozen=True)
class TextTransformerConfig(NetworkConfig):
    """Config of the Transformer; the defaults are text8's.

    It is told neither the step nor what is known: a class of its own stands where nothing is.

    Attributes:
      width, depth, num_heads, mlp_dim: of the blocks.
      attention: kernel, one of those of a ViT.
      remat: what the backward pass computes again: 'none', 'dots' or 'full'.
      unroll: blocks for each iteration of the loop over blocks.
    """

    reads_side: ClassVar[bool] = False

    name: str = "ardm_transformer"
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    attention: str = "auto"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.blocks
        self.at_least(width=4)

    @property
    def blocks(self) -> TransformerConfig:
        """Config of the blocks: projections of attention have no bias."""
        return TransformerConfig(
            width=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            attention_bias=False,
            dtype=self.dtype,
            attention=self.attention,
            remat=self.remat,
            unroll=self.unroll,
        )

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != 1:
            raise ValueError(
                f"model.name={self.name!r} needs data of the shape (length, 1), not {shape}"
            )

    def build(self, problem: Problem, rngs: nnx.Rngs) -> "TextTransformer":
        return TextTransformer(self, problem, rngs=rngs)

    def flops(self, problem: Problem) -> int:
        length = problem.shape[0]
        blocks = self.depth * block_flops(self.blocks, length)
        return blocks + length * linear_flops(self.width, problem.outputs)


class TextTransformer(Network):
    """Embedded tokens and fixed positions, pre-norm blocks with full attention, and the outputs.

    Settled here: exact GELU, where the published code has its tanh form, and biases of 0, where it
    draws N(0, 1e-6). The table has a row for what is not known, which the published one lacks.
    """

    def __init__(self, config: TextTransformerConfig, problem: Problem, *, rngs: nnx.Rngs):
        self.config = config
        self.embedding = nnx.Embed(
            problem.levels,
            config.width,
            embedding_init=nnx.initializers.normal(1.0),
            dtype=DTYPES[config.dtype],
            rngs=rngs,
        )
        self.blocks = stack_blocks(
            lambda key: Block(config.blocks, rngs=nnx.Rngs(key)), config.depth, rngs.params()
        )
        self.final_norm = make_norm(config.blocks, rngs=rngs)
        self.out = linear(config.width, problem.outputs, dtype=config.dtype, rngs=rngs)

    def __call__(
        self,
        values: Int[Array, "batch position 1"],
        side: Float[Array, "batch position side"],
        step: Int[Array, " batch"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch position output"]:
        del side, step, key
        x = self.embedding(values[..., 0])
        wide = jnp.promote_types(x.dtype, jnp.float32)
        positions = sinusoid(jnp.arange(x.shape[1], dtype=wide), self.config.width)
        x = pin_batch(x + positions.astype(x.dtype))
        graphdef, stacked = nnx.split(self.blocks)

        def block(x: Array, parameters: nnx.State) -> tuple[Array, None]:
            x = nnx.merge(graphdef, parameters)(x, mask="full", angles=None)
            return pin_batch(x), None

        x, _ = scan_blocks(block, x, stacked, self.config.blocks)
        return self.out(self.final_norm(x))
