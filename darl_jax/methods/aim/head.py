"""Heads of AIM, from the backbone's output to pixels (Section 3.2, Tables 3e and 4)."""

import dataclasses

import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from darl_jax.nn import attention as attention_lib
from darl_jax.nn import orders, positions
from darl_jax.nn.blocks import (
    Block,
    Mlp,
    TransformerConfig,
    linear,
    make_norm,
    scan_blocks,
    stack_blocks,
)
from darl_jax.nn.flops import block_flops, mlp_flops
from darl_jax.nn.flops import linear as linear_flops
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.nn.orders import Order
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViTConfig

KINDS = ("none", "mlp", "transformer")
_MLP_RATIO = 4


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Config of a head; norms, biases and the way it is computed are the backbone's.

    Attributes:
      kind: 'none' is a single linear layer, 'mlp' sees each token alone, 'transformer' has the
        backbone's attention.
      depth: number of blocks.
      width: channels; the hidden layers of MLPs have four times as many.
      num_heads: of a Transformer; must divide `width`.
      identity_attention: of an MLP, whether a block is a Transformer block with attention to
        itself alone, x + LN(x) and then x + MLP(LN(x)), as in Apple's ml-l3m; the paper describes
        the second half only.
    """

    kind: str = "mlp"
    depth: int = 12
    width: int = 2048
    num_heads: int = 16
    identity_attention: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"objective.head.kind={self.kind!r} is unknown; choose from {KINDS}")
        for key in ("depth", "width", "num_heads"):
            if getattr(self, key) < 1:
                raise ValueError(f"objective.head.{key}={getattr(self, key)} must be at least 1")
        if self.kind != "none" and self.width % 4:
            raise ValueError(
                f"objective.head.width={self.width} must be a multiple of 4, for its positions"
            )
        if self.kind == "transformer" and self.width % self.num_heads:
            raise ValueError(
                f"objective.head.width={self.width} must be a multiple of "
                f"config.objective.head.num_heads={self.num_heads}"
            )

    def transformer(self, vit: ViTConfig) -> TransformerConfig:
        """The blocks' shape, and the backbone's way of computing them."""
        shared = {
            field.name: getattr(vit, field.name) for field in dataclasses.fields(TransformerConfig)
        }
        own = {
            "width": self.width,
            "depth": self.depth,
            "num_heads": self.num_heads if self.kind == "transformer" else 1,
            "mlp_dim": _MLP_RATIO * self.width,
            "drop_path": 0.0,
        }
        return TransformerConfig(**shared | own)


class MlpBlock(nnx.Module):
    """x + LN(x), where attention is the identity, and then x + MLP(LN(x)) on each token."""

    def __init__(self, config: TransformerConfig, *, identity_attention: bool, rngs: nnx.Rngs):
        self.norm_attention = make_norm(config, rngs=rngs) if identity_attention else None
        self.norm_mlp = make_norm(config, rngs=rngs)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        if self.norm_attention is not None:
            x = x + self.norm_attention(x)
        return x + self.mlp(self.norm_mlp(x))


class Head(nnx.Module):
    """Linear, sine-cosine positions, blocks, norm, linear; of kind 'none' the last linear only.

    Settled here: positions are those of a token's own patch, as in the backbone; a Transformer has
    the backbone's mask, and like it no rotation.
    """

    def __init__(
        self, config: HeadConfig, vit: ViTConfig, *, patch_dim: int, grid: Grid, rngs: nnx.Rngs
    ):
        self.config = config
        self.grid = grid
        width = vit.width
        if config.kind != "none":
            self.blocks_config = block_config = config.transformer(vit)
            self.from_backbone = linear(vit.width, config.width, dtype=vit.dtype, rngs=rngs)

            def create(key: Array) -> nnx.Module:
                rngs = nnx.Rngs(key)
                if config.kind == "transformer":
                    return Block(block_config, rngs=rngs)
                return MlpBlock(
                    block_config, identity_attention=config.identity_attention, rngs=rngs
                )

            self.blocks = stack_blocks(create, config.depth, rngs.params())
            self.norm = make_norm(block_config, rngs=rngs)
            width = config.width
        self.to_pixels = linear(width, patch_dim, dtype=vit.dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "batch patch width"],
        *,
        mask: attention_lib.Mask,
        grid: Grid,
        order: Order,
    ) -> Float[Array, "batch patch pixel"]:
        """Predictions of the patches that follow, in the sequence's order."""
        if self.config.kind == "none":
            return self.to_pixels(tokens)
        table = positions.sincos_2d(grid, self.grid, self.config.width, dtype=np.float64)
        x = self.from_backbone(tokens)
        x = pin_batch(x + orders.take(table, order).astype(x.dtype))
        graphdef, stacked = nnx.split(self.blocks)

        def block(x: Array, parameters: nnx.State) -> tuple[Array, None]:
            module = nnx.merge(graphdef, parameters)
            transformer = self.config.kind == "transformer"
            x = module(x, mask=mask, angles=None) if transformer else module(x)
            return pin_batch(x), None

        x, _ = scan_blocks(block, x, stacked, self.blocks_config)
        return self.to_pixels(self.norm(x))


def head_flops(config: HeadConfig, vit: ViTConfig, *, tokens: int, patch_dim: int) -> int:
    """FLOPs of the head's forward pass on an image, by the convention of nn/flops.py."""
    if config.kind == "none":
        return tokens * linear_flops(vit.width, patch_dim)
    blocks = config.transformer(vit)
    each = (
        block_flops(blocks, tokens) if config.kind == "transformer" else tokens * mlp_flops(blocks)
    )
    ends = linear_flops(vit.width, config.width) + linear_flops(config.width, patch_dim)
    return config.depth * each + tokens * ends
