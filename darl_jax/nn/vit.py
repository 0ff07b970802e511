"""The backbone: a decoder-only Vision Transformer (Section 3.1)."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.nn import attention as attention_lib
from darl_jax.nn import orders, positions
from darl_jax.nn.blocks import (
    NORMS,
    TOKEN_STDDEV,
    Angles,
    Block,
    TransformerConfig,
    drop_path_scales,
    kernel_initializer,
    linear,
    make_norm,
    scan_blocks,
    stack_blocks,
)
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.nn.orders import Order, OrderConfig

PATCH_NORMS = ("none", *NORMS)
START_TOKENS = ("learned", "none")


@dataclasses.dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """A backbone's shape and the way it is computed."""

    name: str = "vit"
    patch_size: int = 16
    positions: str = "rope2d"  # one of positions.POSITIONS (Table 1)
    rope_max_wavelength: float = 10_000.0
    rope_y_first: bool = False
    rope_rescale: float = 1.0  # 'rope_dinov3': largest random factor of coordinates in training
    patch_norm: str = "none"  # norm of the embedded patches: 'none', 'layer' or 'rms'
    start_token: str = "learned"  # 'learned' (a class token under full attention) or 'none'
    # Rows and columns of the images on whose grid positions are counted: those of pre-training,
    # where a model goes on at another resolution. None: data.image_size.
    trained_image_size: int | None = None
    order: OrderConfig = dataclasses.field(default_factory=OrderConfig)  # of the patches

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_names(
            positions=positions.POSITIONS, patch_norm=PATCH_NORMS, start_token=START_TOKENS
        )
        self.check_positive("patch_size")
        if self.trained_image_size is not None and (
            self.trained_image_size < 1 or self.trained_image_size % self.patch_size
        ):
            raise ValueError(
                f"model.trained_image_size={self.trained_image_size} must be a multiple of "
                f"model.patch_size={self.patch_size}"
            )
        if self.positions.startswith("sincos2d") and self.width % 4:
            raise ValueError(
                f"model.positions={self.positions!r} needs a width that is a multiple of 4, not "
                f"{self.width}"
            )
        if self.rope_rescale < 1.0 or (
            self.rope_rescale != 1.0 and self.positions != "rope_dinov3"
        ):
            raise ValueError(
                f"model.rope_rescale={self.rope_rescale} must be 1, or larger with "
                "config.model.positions='rope_dinov3'"
            )
        if self.rope_max_wavelength <= 0:
            raise ValueError(
                f"model.rope_max_wavelength={self.rope_max_wavelength} must be positive"
            )
        multiple = {"rope1d": 2, "rope2d": 4, "rope_dinov3": 4}.get(self.positions, 1)
        if self.head_dim % multiple:
            raise ValueError(
                f"model.positions={self.positions!r} needs a head_dim (width / num_heads) that is "
                f"a multiple of {multiple}, not {self.head_dim}"
            )

    @property
    def start_tokens(self) -> int:
        """Start tokens of a sequence: 1 or 0."""
        return int(self.start_token == "learned")


class Features(NamedTuple):
    """Outputs of a backbone; the first token is the start token, if there is one."""

    tokens: Float[Array, "batch token width"]  # the last block's output after the final norm
    blocks: Float[Array, "depth batch token width"]  # outputs of the blocks, before any norm
    last: Float[Array, "batch token width"]  # the last of these


class ViT(nnx.Module):
    """[SOS, p_1 .. p_T] -> features; in pre-training without p_T, which nothing is predicted from.

    A backbone without a start token has features of the patches alone.

    `patch_dim` counts the pixel values of a patch; `grid` is that of the training images.
    """

    def __init__(self, config: ViTConfig, *, patch_dim: int, grid: positions.Grid, rngs: nnx.Rngs):
        self.config = config
        self.grid = grid
        token = nnx.initializers.normal(TOKEN_STDDEV)
        self.patch_embedding = linear(
            patch_dim,
            config.width,
            dtype=config.dtype,
            rngs=rngs,
            kernel_init=kernel_initializer(config),
        )
        self.patch_norm = (
            None
            if config.patch_norm == "none"
            else make_norm(config, kind=config.patch_norm, rngs=rngs)
        )
        self.sos = (
            nnx.Param(token(rngs.params(), (config.width,), jnp.float32))
            if config.start_tokens
            else None
        )
        if config.positions == "learnable":
            self.positions = nnx.Param(
                token(rngs.params(), (math.prod(grid), config.width), jnp.float32)
            )
        self.blocks = stack_blocks(
            lambda key: Block(config, rngs=nnx.Rngs(key)), config.depth, rngs.params()
        )
        self.final_norm = make_norm(config, rngs=rngs)

    def __call__(
        self,
        patches: Float[Array, "batch patch pixel"],
        *,
        mask: attention_lib.Mask = "causal",
        grid: positions.Grid | None = None,
        order: Order | None = None,
        without_last: bool = False,
        depth: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Features:
        """Features of the start token and of an image's patches, as they stand in the sequence.

        Args:
          patches: standardized patches of whole images, in raster order.
          mask: 'causal', 'full', or for each example the number of tokens, the start token
            included, in the prefix that all tokens attend to.
          grid: (rows, columns) of the patches; the trained grid if not given.
          order: of the patches in the sequence, which need not hold all of them; the config's if
            not given.
          without_last: whether to leave out the sequence's last patch, as in pre-training.
          depth: number of blocks to run; all of them if not given.
          key: draws the branches that drop path leaves out, and RoPE's scale; None outside
            training.

        Raises:
          ValueError: these are not all the patches of an image, or the order does not fit them.
        """
        grid = grid or self.grid
        order = self.order(grid) if order is None else order
        x, angles = self.sequence(patches, grid, order, without_last=without_last)
        return self.encode(x, angles, mask=mask, depth=depth, key=key)

    def encode(
        self,
        x: Float[Array, "batch token width"],
        angles: Angles,
        *,
        mask: attention_lib.Mask = "causal",
        depth: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Features:
        """Features of embedded tokens: the blocks and the final norm, after `sequence`.

        The arguments are those of `__call__`, with each token's rotation angles.
        """
        config = self.config
        scales = None
        if key is not None:
            if config.drop_path:
                scales = drop_path_scales(key, config.drop_path, config.depth, len(x))
            if angles is not None and config.rope_rescale > 1.0:
                scale = positions.random_scale(jax.random.fold_in(key, 1), config.rope_rescale)
                angles = angles * scale
        graphdef, stacked = nnx.split(self.blocks)
        if depth is not None:
            stacked, scales = jax.tree.map(lambda each: each[:depth], (stacked, scales))

        def block(x: Array, per_block: tuple[nnx.State, Array | None]) -> tuple[Array, Array]:
            parameters, branch_scales = per_block
            x = nnx.merge(graphdef, parameters)(
                x, mask=mask, angles=angles, branch_scales=branch_scales
            )
            x = pin_batch(x)
            return x, x

        x, blocks = scan_blocks(block, x, (stacked, scales), config)
        return Features(self.final_norm(x), blocks, x)

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
        if self.patch_norm is not None:
            x = self.patch_norm(x)
        table = self.position_table(grid)
        if table is not None:
            x = x + orders.take(table, kept).astype(x.dtype)
        if self.sos is not None:
            sos = jnp.broadcast_to(self.sos[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([sos, x], axis=1)
        angles = self.angles(grid, order)
        if angles is not None and without_last:
            angles = angles[..., :-1, :]
        return pin_batch(x), angles

    def position_table(self, grid: positions.Grid) -> Any:
        """Positions added to embedded patches, in raster order; None without any."""
        if self.config.positions == "learnable":
            return positions.resample_positions(self.positions[...], self.grid, grid)
        return fixed_positions(self.config, grid, self.grid)

    def angles(self, grid: positions.Grid, order: Order) -> Angles:
        """Rotation angles of the start token (0), if any, and the patches, in sequence order."""
        return sequence_angles(self.config, grid, self.grid, order)


def fixed_positions(config: ViTConfig, grid: positions.Grid, trained_grid: positions.Grid) -> Any:
    """Sine-cosine positions of the patches, in raster order; None where the config has none."""
    if not config.positions.startswith("sincos2d"):
        return None
    trained_grid = grid if config.positions == "sincos2d_native" else trained_grid
    return positions.sincos_2d(grid, trained_grid, config.width, dtype=_wide_dtype(config))


def sequence_angles(
    config: ViTConfig, grid: positions.Grid, trained_grid: positions.Grid, order: Order
) -> Angles:
    """Rotation angles of the start token (0), if any, and the patches, in sequence order.

    1D RoPE counts positions in the sequence, whatever patch is there.
    """
    if not config.positions.startswith("rope"):
        return None
    angles = positions.rope_angles(
        *(config.positions, grid, trained_grid, config.head_dim),
        max_wavelength=config.rope_max_wavelength,
        y_first=config.rope_y_first,
        dtype=_wide_dtype(config),
    )
    start = config.start_tokens
    if config.positions == "rope1d":
        return angles[1 - start : 1 + order.shape[-1]]
    if order.ndim == 1:
        return angles[np.pad(1 + order, (start, 0))]
    return orders.take(angles, jnp.pad(1 + order, ((0, 0), (start, 0))))


def _wide_dtype(config: ViTConfig) -> type[np.floating]:
    return np.float64 if config.dtype == "float64" else np.float32


def layer_of(path: tuple[str, ...], depth: int) -> int | tuple[int, ...]:
    """Layer of a parameter of a ViT, for layer-wise decay as in BEiT and MAE.

    0 for the embedding, its norm, the start token and learned positions; i + 1 for block i, one for
    each entry of the first axis of stacked blocks; depth + 1 for the final norm.
    """
    if path[0] == "blocks":
        return tuple(range(1, depth + 1))
    return depth + 1 if path[0] == "final_norm" else 0
