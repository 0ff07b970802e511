"""The backbone: a decoder-only Vision Transformer (Section 3.1)."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.nn import attention as attention_lib
from darl_jax.nn import orders, positions
from darl_jax.nn.blocks import (
    TOKEN_STDDEV,
    Angles,
    Block,
    TransformerConfig,
    drop_path_scales,
    layer_norm,
    linear,
    scan_blocks,
    stack_blocks,
)
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.nn.orders import Order, OrderConfig


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """A backbone's shape and the way it is computed."""

    name: str = "vit"
    patch_size: int = 16
    positions: str = "rope2d"  # one of positions.POSITIONS (Table 1)
    rope_max_wavelength: float = 10_000.0
    rope_y_first: bool = False
    # Rows and columns of the images on whose grid positions are counted: those of pre-training,
    # where a model goes on at another resolution. None: data.image_size.
    trained_image_size: int | None = None
    order: OrderConfig = dataclasses.field(default_factory=OrderConfig)  # of the patches

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_names(positions=positions.POSITIONS)
        self.check_positive("patch_size")
        if self.trained_image_size is not None and (
            self.trained_image_size < 1 or self.trained_image_size % self.patch_size
        ):
            raise ValueError(
                f"model.trained_image_size={self.trained_image_size} must be a multiple of "
                f"model.patch_size={self.patch_size}"
            )
        if self.positions == "sincos2d" and self.width % 4:
            raise ValueError(
                f"model.positions='sincos2d' needs a width that is a multiple of 4, not "
                f"{self.width}"
            )
        if self.rope_max_wavelength <= 0:
            raise ValueError(
                f"model.rope_max_wavelength={self.rope_max_wavelength} must be positive"
            )
        multiple = {"rope1d": 2, "rope2d": 4}.get(self.positions, 1)
        if self.head_dim % multiple:
            raise ValueError(
                f"model.positions={self.positions!r} needs a head_dim (width / num_heads) that is "
                f"a multiple of {multiple}, not {self.head_dim}"
            )


class Features(NamedTuple):
    """Outputs of a backbone; the first token is the start of the sequence."""

    tokens: Float[Array, "batch token width"]  # the last block's output after the final norm
    blocks: Float[Array, "depth batch token width"]  # every block's output, before any norm


class ViT(nnx.Module):
    """[SOS, p_1 .. p_T] -> features; in pre-training without p_T, which nothing is predicted from.

    `patch_dim` counts the pixel values of a patch; `grid` is that of the training images.
    """

    def __init__(self, config: ViTConfig, *, patch_dim: int, grid: positions.Grid, rngs: nnx.Rngs):
        self.config = config
        self.grid = grid
        token = nnx.initializers.normal(TOKEN_STDDEV)
        self.patch_embedding = linear(patch_dim, config.width, dtype=config.dtype, rngs=rngs)
        self.sos = nnx.Param(token(rngs.params(), (config.width,), jnp.float32))
        if config.positions == "learnable":
            self.positions = nnx.Param(
                token(rngs.params(), (math.prod(grid), config.width), jnp.float32)
            )
        self.blocks = stack_blocks(
            lambda key: Block(config, rngs=nnx.Rngs(key)), config.depth, rngs.params()
        )
        self.final_norm = layer_norm(config.width, dtype=config.dtype, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "batch patch pixel"],
        *,
        mask: attention_lib.Mask = "causal",
        grid: positions.Grid | None = None,
        order: Order | None = None,
        without_last: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Features:
        """Features of the start token and of an image's patches, as they stand in the sequence.

        Args:
          patches: standardized patches of whole images, in raster order.
          mask: 'causal', 'full', or for each example the number of tokens, the start token
            included, in the prefix that all tokens attend to.
          grid: (rows, columns) of the patches; the trained grid if not given.
          order: of the patches in the sequence; the config's if not given.
          without_last: whether to leave out the sequence's last patch, as in pre-training.
          key: draws the branches that drop path leaves out; None outside training.

        Raises:
          ValueError: these are not all the patches of an image, or the order does not fit them.
        """
        grid = grid or self.grid
        order = self.order(grid) if order is None else order
        x, angles = self.sequence(patches, grid, order, without_last=without_last)
        config = self.config
        scales = None
        if key is not None and config.drop_path:
            scales = drop_path_scales(key, config.drop_path, config.depth, len(x))
        graphdef, stacked = nnx.split(self.blocks)

        def block(x: Array, per_block: tuple[nnx.State, Array | None]) -> tuple[Array, Array]:
            parameters, branch_scales = per_block
            x = nnx.merge(graphdef, parameters)(
                x, mask=mask, angles=angles, branch_scales=branch_scales
            )
            x = pin_batch(x)
            return x, x

        x, blocks = scan_blocks(block, x, (stacked, scales), config)
        return Features(self.final_norm(x), blocks)

    def order(self, grid: positions.Grid) -> Int[np.ndarray, " patch"]:
        """The config's order on a grid; raster order where training draws one for each image."""
        if self.config.order.name == "random":
            return np.arange(math.prod(grid))
        return orders.fixed_order(self.config.order, grid)

    def sequence(
        self,
        patches: Float[Array, "batch patch pixel"],
        grid: positions.Grid,
        order: Order,
        *,
        without_last: bool = False,
    ) -> tuple[Float[Array, "batch token width"], Angles]:
        """The start token and the embedded patches in order, with their rotation angles.

        Raises:
          ValueError: these are not all the patches of an image.
        """
        if patches.shape[1] != math.prod(grid):
            raise ValueError(f"{patches.shape[1]} patches do not fill the grid of {grid}")
        kept = order[..., :-1] if without_last else order
        x = self.patch_embedding(orders.take(patches, kept))
        table = self.position_table(grid)
        if table is not None:
            x = x + orders.take(table, kept).astype(x.dtype)
        sos = jnp.broadcast_to(self.sos[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        angles = self.angles(grid, order)
        if angles is not None and without_last:
            angles = angles[..., :-1, :]
        return pin_batch(jnp.concatenate([sos, x], axis=1)), angles

    def position_table(self, grid: positions.Grid) -> Any:
        """Positions added to embedded patches, in raster order; None without any."""
        if self.config.positions == "sincos2d":
            return positions.sincos_2d(grid, self.grid, self.config.width)
        if self.config.positions == "learnable":
            return positions.resample_positions(self.positions[...], self.grid, grid)
        return None

    def angles(self, grid: positions.Grid, order: Order) -> Angles:
        """Rotation angles of the start token (0) and the patches, in the order of the sequence.

        1D RoPE counts positions in the sequence, whatever patch is there.
        """
        config = self.config
        if not config.positions.startswith("rope"):
            return None
        angles = positions.rope_angles(
            *(config.positions, grid, self.grid, config.head_dim),
            max_wavelength=config.rope_max_wavelength,
            y_first=config.rope_y_first,
        )
        if config.positions == "rope1d":
            return angles
        if order.ndim == 1:
            return angles[np.concatenate([[0], 1 + order])]
        return orders.take(angles, jnp.pad(1 + order, ((0, 0), (1, 0))))


def layer_of(path: tuple[str, ...], depth: int) -> int | tuple[int, ...]:
    """Layer of a parameter of a ViT, for layer-wise decay as in BEiT and MAE.

    0 for the embedding, the start token and learned positions; i + 1 for block i, one for each
    entry of the first axis of stacked blocks; depth + 1 for the final norm.
    """
    if path[0] == "blocks":
        return tuple(range(1, depth + 1))
    return depth + 1 if path[0] == "final_norm" else 0
