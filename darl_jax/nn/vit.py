"""The backbone: a decoder-only Vision Transformer (Section 3.1)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.nn import attention as attention_lib
from darl_jax.nn import orders, positions
from darl_jax.nn.orders import Order, OrderConfig
from darl_jax.training.sharding import pin_batch

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
LAYER_NORM_EPSILON = 1e-6
TOKEN_STDDEV = 0.02  # Learned tokens and positions start as N(0, 0.02), as in MAE.

_PROJECTION = "projection"

REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    # Keeps what the projections give and computes the rest, attention included, again.
    "dots": jax.checkpoint_policies.save_only_these_names(_PROJECTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A backbone's shape and the way it is computed.

    `remat`, `unroll` and `attention` change speed and memory, never the result.
    """

    name: str = "vit"
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    patch_size: int = 16
    positions: str = "rope2d"  # one of positions.POSITIONS (Table 1)
    rope_max_wavelength: float = 10_000.0
    rope_y_first: bool = False
    # Rows and columns of the images on whose grid positions are counted: those of pre-training,
    # where a model goes on at another resolution. None: data.image_size.
    trained_image_size: int | None = None
    order: OrderConfig = dataclasses.field(default_factory=OrderConfig)  # of the patches
    drop_path: float = 0.0  # of the last block; linear from 0 at the first, in training alone
    fused_qkv_init: bool = False  # the Xavier bound of one D x 3D matrix, as in MAE's torch code
    dtype: str = "bfloat16"  # of activations and matmul inputs; parameters are float32
    attention: str = "auto"  # one of attention.IMPLEMENTATIONS
    remat: str = "none"  # one of REMAT_POLICIES
    unroll: int = 1  # blocks for each iteration of the scan over blocks

    def __post_init__(self) -> None:
        for key, value, valid in (
            ("positions", self.positions, positions.POSITIONS),
            ("dtype", self.dtype, DTYPES),
            ("attention", self.attention, attention_lib.IMPLEMENTATIONS),
            ("remat", self.remat, REMAT_POLICIES),
        ):
            if value not in valid:
                raise ValueError(f"model.{key}={value!r} is unknown; choose from {list(valid)}")
        for key in ("width", "depth", "num_heads", "mlp_dim", "patch_size", "unroll"):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"model.drop_path={self.drop_path} must be in [0, 1)")
        if self.trained_image_size is not None and (
            self.trained_image_size < 1 or self.trained_image_size % self.patch_size
        ):
            raise ValueError(
                f"model.trained_image_size={self.trained_image_size} must be a multiple of "
                f"model.patch_size={self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(
                f"model.width={self.width} must be a multiple of model.num_heads={self.num_heads}"
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

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads


class Features(NamedTuple):
    """All that a backbone knows of a batch; the first token is the start of the sequence."""

    tokens: Float[Array, "batch token width"]  # the last block's output after the final norm
    blocks: Float[Array, "depth batch token width"]  # every block's output, before any norm


def flat_dot_general(x: Array, kernel: Array, _: Any, **kwargs: Any) -> Float[Array, "..."]:
    """What `jax.lax.dot_general` gives for (..., in) and (in, out), from one flat matmul.

    The weight's gradient is then a plain matmul: on a CPU several times as fast as the contraction
    over (batch, token) which it is otherwise.
    """
    flat = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **kwargs
    )
    flat = checkpoint_name(flat, _PROJECTION)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def linear(
    in_features: int,
    out_features: int,
    *,
    dtype: str,
    rngs: nnx.Rngs,
    kernel_init: nnx.Initializer | None = None,
) -> nnx.Linear:
    """A projection with Xavier-uniform weights and zero bias (Table 8; MAE's initialization)."""
    return nnx.Linear(
        in_features,
        out_features,
        dtype=DTYPES[dtype],
        kernel_init=kernel_init or nnx.initializers.xavier_uniform(),
        dot_general=flat_dot_general,
        rngs=rngs,
    )


def recompute(function: Callable[..., Any]) -> Callable[..., Any]:
    """A cheap function that keeps its arguments alone for the backward pass.

    Whatever `remat` says: elementwise work costs less than writing down and reading its results.
    """
    return jax.checkpoint(function, policy=jax.checkpoint_policies.nothing_saveable)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm of which the backward pass needs only the input."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return recompute(super().__call__)(x, mask=mask)


def layer_norm(features: int, *, dtype: str, rngs: nnx.Rngs) -> LayerNorm:
    """LayerNorm with epsilon 1e-6; statistics are float32 and two-pass."""
    return LayerNorm(
        features,
        epsilon=LAYER_NORM_EPSILON,
        use_fast_variance=False,
        dtype=DTYPES[dtype],
        rngs=rngs,
    )


def stack_blocks(create: Callable[[PRNGKeyArray], nnx.Module], number: int, key: Array) -> Any:
    """`number` modules of one kind, with their parameters stacked along a new first dimension."""
    return nnx.vmap(create, in_axes=0, out_axes=0)(jax.random.split(key, number))


# Of the tokens of all examples, or of each; None where nothing is rotated.
Angles = Float[np.ndarray, "token pair"] | Float[Array, "*batch token pair"] | None


class Attention(nnx.Module):
    """Multi-head self-attention with separate query, key, value and output projections."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.implementation = config.attention
        # One matrix of D x 3D has the bound sqrt(6 / 4D), one of D x D has sqrt(6 / 2D).
        init = nnx.initializers.variance_scaling(
            0.5 if config.fused_qkv_init else 1.0, "fan_avg", "uniform"
        )

        def project(kernel_init: nnx.Initializer | None = None) -> nnx.Linear:
            return linear(
                config.width, config.width, dtype=config.dtype, rngs=rngs, kernel_init=kernel_init
            )

        self.query, self.key, self.value = (project(init) for _ in range(3))
        self.out = project()

    def __call__(
        self, x: Float[Array, "batch token width"], *, mask: attention_lib.Mask, angles: Angles
    ) -> Float[Array, "batch token width"]:
        return self.attend(self.queries(x, angles), *self.keys_values(x, angles), mask=mask)

    def heads(
        self, y: Float[Array, "batch token width"], angles: Angles = None
    ) -> Float[Array, "batch token head channel"]:
        """A projection cut into heads, and rotated where there are angles."""
        y = y.reshape(*y.shape[:2], self.num_heads, -1)
        return y if angles is None else positions.rotate(y, angles)

    def queries(
        self, x: Float[Array, "batch token width"], angles: Angles
    ) -> Float[Array, "batch token head channel"]:
        """What tokens look for."""
        return self.heads(self.query(x), angles)

    def keys_values(
        self, x: Float[Array, "batch token width"], angles: Angles
    ) -> tuple[Float[Array, "batch token head channel"], Float[Array, "batch token head channel"]]:
        """By what tokens are found, and what is found there."""
        return self.heads(self.key(x), angles), self.heads(self.value(x))

    def attend(
        self,
        query: Float[Array, "batch token head channel"],
        key: Float[Array, "batch token head channel"],
        value: Float[Array, "batch token head channel"],
        *,
        mask: attention_lib.Mask,
    ) -> Float[Array, "batch token width"]:
        """The output for each query."""
        y = attention_lib.attention(
            query, key, value, mask=mask, implementation=self.implementation
        )
        return self.out(y.reshape(*y.shape[:2], -1))


class Mlp(nnx.Module):
    """width -> mlp_dim -> exact GELU -> width."""

    def __init__(self, width: int, mlp_dim: int, *, dtype: str, rngs: nnx.Rngs):
        self.up = linear(width, mlp_dim, dtype=dtype, rngs=rngs)
        self.down = linear(mlp_dim, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return recompute(lambda hidden: self.down(gelu(hidden)))(self.up(x))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), exact, computed in float32.

    Written with erf: `jax.nn.gelu(approximate=False)` goes through erfc and takes 2.6 times as long
    on a CPU for relative accuracy where the value is below 1e-6.
    """
    x32 = x.astype(jnp.float32)
    cdf = 0.5 * (1.0 + jax.lax.erf(x32 * math.sqrt(0.5)))
    return (x32 * cdf).astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.norm_attention = layer_norm(config.width, dtype=config.dtype, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.norm_mlp = layer_norm(config.width, dtype=config.dtype, rngs=rngs)
        self.mlp = Mlp(config.width, config.mlp_dim, dtype=config.dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch token width"],
        *,
        mask: attention_lib.Mask,
        angles: Angles,
        branch_scales: Float[Array, "2 batch"] | None = None,
    ) -> Float[Array, "batch token width"]:
        """The block's output; `branch_scales` multiply the two branches of each example."""
        attended = self.attention(self.norm_attention(x), mask=mask, angles=angles)
        return self.finish(x, attended, branch_scales)

    def finish(
        self,
        x: Float[Array, "batch token width"],
        attended: Float[Array, "batch token width"],
        branch_scales: Float[Array, "2 batch"] | None = None,
    ) -> Float[Array, "batch token width"]:
        """The block's output for its input and what attention made of that."""

        def scaled(branch: Array, index: int) -> Array:
            if branch_scales is None:
                return branch
            return branch * branch_scales[index][:, None, None].astype(branch.dtype)

        x = x + scaled(attended, 0)
        return x + scaled(self.mlp(self.norm_mlp(x)), 1)


def drop_path_scales(
    key: PRNGKeyArray, rate: float, depth: int, batch: int
) -> Float[Array, "depth 2 batch"]:
    """What multiplies the branches of each block: 0 where dropped, else 1 / (1 - rate).

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382) as in MAE's fine-tuning: each branch of
    each example is dropped independently, at a rate that is linear in the block's number, 0 for the
    first block and `rate` for the last.
    """
    keep = 1.0 - jnp.linspace(0.0, rate, depth)[:, None, None]
    kept = jax.random.bernoulli(key, keep, (depth, 2, batch))
    return kept / keep


class ViT(nnx.Module):
    """[SOS, p_1 .. p_T] -> features; in pre-training without p_T, which nothing is predicted from.

    Args:
      config: the backbone's shape.
      patch_dim: pixel values of a patch.
      grid: (rows, columns) of patches of the images that it is trained on.
      rngs: random state for the initial parameters; none is kept.
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
          mask: 'causal', 'full', or for each example the number of tokens, the start token's
            included, that everybody sees.
          grid: (rows, columns) of the patches; the trained grid if not given.
          order: of the patches in the sequence; the config's if not given.
          without_last: whether the last patch of the sequence is left out, as in pre-training.
          key: draws which branches drop path leaves out; None outside training.

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
        """The config's order on a grid; raster where in training each image had one of its own.

        Raises:
          ValueError: its blocks do not divide the grid.
        """
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
        """The start token and the embedded patches in order, with the angles that they turn by.

        Raises:
          ValueError: these are not all the patches of an image.
        """
        if patches.shape[1] != math.prod(grid):
            raise ValueError(f"{patches.shape[1]} patches do not fill the grid of {grid}")
        places = order[..., :-1] if without_last else order
        x = self.patch_embedding(orders.take(patches, places))
        table = self.position_table(grid)
        if table is not None:
            x = x + orders.take(table, places).astype(x.dtype)
        sos = jnp.broadcast_to(self.sos[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        angles = self.angles(grid, order)
        if angles is not None and without_last:
            angles = angles[..., :-1, :]
        return pin_batch(jnp.concatenate([sos, x], axis=1)), angles

    def position_table(self, grid: positions.Grid) -> Any:
        """What is added to embedded patches, by raster number; None where nothing is."""
        if self.config.positions == "sincos2d":
            return positions.sincos_2d(grid, self.grid, self.config.width)
        if self.config.positions == "learnable":
            return positions.resample_positions(self.positions[...], self.grid, grid)
        return None

    def angles(self, grid: positions.Grid, order: Order) -> Angles:
        """By what the start token (not at all) and the patches turn, as they stand in sequence.

        1D RoPE counts places in the sequence, whatever patch stands there.
        """
        config = self.config
        if not config.positions.startswith("rope"):
            return None
        angles = positions.rope_angles(
            config.positions,
            grid,
            self.grid,
            config.head_dim,
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


def scan_blocks(
    block: Callable[[Any, Any], tuple[Any, Any]], x: Any, per_block: Any, config: ViTConfig
) -> tuple[Any, Any]:
    """Applies stacked blocks one after the other, with what `remat` and `unroll` say.

    Args:
      block: (x, one block's share of `per_block`) to (x, what is kept of this block).
      x: what the first block takes.
      per_block: arrays with the block as their first dimension.
      config: of the backbone.
    """
    policy = REMAT_POLICIES[config.remat]
    if policy is not None:
        block = jax.checkpoint(block, policy=policy, prevent_cse=False)
    return jax.lax.scan(block, x, per_block, unroll=min(config.unroll, config.depth))
