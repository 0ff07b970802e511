"""MAE's model: an encoder on the patches that are kept, and a decoder on all (Section 3).

The decoder reads the sequence in the order of the shuffle, kept patches first, with the positions
to match. Its attention is full, so that this equals the raster order of the reference; nothing is
sent back to its place, neither forward nor in the gradient, and only removed patches become pixels.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from darl_jax.nn import orders
from darl_jax.nn.blocks import (
    TOKEN_STDDEV,
    Block,
    linear,
    make_norm,
    scan_blocks,
    stack_blocks,
)
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViT, ViTConfig, fixed_positions, sequence_angles


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape of the decoder (Section 4.1, Table 1); all else is as in the backbone."""

    width: int = 512
    depth: int = 8
    num_heads: int = 16
    mlp_dim: int = 2048

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"objective.decoder.{key}={value} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"objective.decoder.width={self.width} must be a multiple of "
                f"config.objective.decoder.num_heads={self.num_heads}"
            )
        if self.width % 4:
            raise ValueError(
                f"objective.decoder.width={self.width} must be a multiple of 4 (sine-cosine "
                "positions)"
            )

    def transformer(self, backbone: ViTConfig) -> ViTConfig:
        """The decoder's blocks: of the backbone's kind, with fixed positions where its are learned.

        Raises:
          ValueError: the backbone's rotary positions do not suit the heads.
        """
        positions = backbone.positions
        try:
            return dataclasses.replace(
                backbone,
                **dataclasses.asdict(self),
                positions="sincos2d" if positions == "learnable" else positions,
                drop_path=0.0,
            )
        except ValueError as error:
            raise ValueError(f"objective.decoder: {error}") from error


class Decoder(nnx.Module):
    """Encoded kept patches -> pixels of the removed ones.

    `grid` is the trained (rows, columns) of patches.
    """

    def __init__(
        self,
        config: DecoderConfig,
        backbone: ViTConfig,
        *,
        patch_dim: int,
        grid: Grid,
        rngs: nnx.Rngs,
    ):
        self.config = config.transformer(backbone)
        self.grid = grid
        dtype = backbone.dtype
        self.embed = linear(backbone.width, config.width, dtype=dtype, rngs=rngs)
        token = nnx.initializers.normal(TOKEN_STDDEV)
        self.mask_token = nnx.Param(token(rngs.params(), (config.width,), jnp.float32))
        self.blocks = stack_blocks(
            lambda key: Block(self.config, rngs=nnx.Rngs(key)), config.depth, rngs.params()
        )
        self.norm = make_norm(self.config, rngs=rngs)
        self.to_pixels = linear(config.width, patch_dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "batch kept_token width"],
        order: Int[Array, "batch patch"],
        grid: Grid,
    ) -> Float[Array, "batch removed pixel"]:
        """Pixels of the removed patches, in their order.

        Args:
          tokens: the encoder's output for the start token, if any, and the first patches of the
            order.
          order: all patches of an image, the kept ones first.
          grid: (rows, columns) of patches.
        """
        config = self.config
        x = self.embed(tokens)
        batch, encoded, width = x.shape
        removed = config.start_tokens + order.shape[1] - encoded
        masked = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), (batch, removed, width))
        x = jnp.concatenate([x, masked], axis=1)
        table = fixed_positions(config, grid, self.grid)
        if table is not None:
            added = orders.take(table, order).astype(x.dtype)  # the start token's are 0
            x = x + jnp.pad(added, ((0, 0), (config.start_tokens, 0), (0, 0)))
        angles = sequence_angles(config, grid, self.grid, order)
        graphdef, stacked = nnx.split(self.blocks)

        def block(x: Array, parameters: nnx.State) -> tuple[Array, None]:
            x = nnx.merge(graphdef, parameters)(x, mask="full", angles=angles)
            return pin_batch(x), None

        x, _ = scan_blocks(block, pin_batch(x), stacked, config)
        return self.to_pixels(self.norm(x[:, encoded:]))


class MAE(nnx.Module):
    """Pre-training model; transfer keeps its `backbone`.

    Args:
      vit: the encoder.
      decoder: the decoder's shape.
      grid: (rows, columns) of patches.
      channels: of an image.
    """

    def __init__(
        self,
        vit: ViTConfig,
        decoder: DecoderConfig,
        *,
        grid: Grid,
        channels: int,
        rngs: nnx.Rngs,
    ):
        patch_dim = vit.patch_size**2 * channels
        self.backbone = ViT(vit, patch_dim=patch_dim, grid=grid, rngs=rngs)
        self.mae_decoder = Decoder(decoder, vit, patch_dim=patch_dim, grid=grid, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "batch patch pixel"],
        order: Int[Array, "batch patch"],
        *,
        kept: int,
        grid: Grid | None = None,
    ) -> Float[Array, "batch removed pixel"]:
        """Predicts order[:, kept:] from order[:, :kept].

        Args:
          patches: standardized patches of whole images, in raster order.
          order: a permutation of them for each image.
          kept: number of patches that the encoder sees.
          grid: (rows, columns) of patches; the trained grid by default.
        """
        grid = grid or self.backbone.grid
        tokens = self.backbone(patches, mask="full", grid=grid, order=order[:, :kept]).tokens
        return self.mae_decoder(tokens, order, grid)
