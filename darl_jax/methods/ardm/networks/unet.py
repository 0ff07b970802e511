"""U-Net on images of integers (section 5 and appendix D of arXiv 2110.02037).

Where the paper and the published code differ, this is the code: attention after every block, and a
block more on the way up than on the way down.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.methods.ardm.networks.base import (
    Network,
    NetworkConfig,
    Problem,
    TimeEmbedding,
    centered,
    dense,
)
from darl_jax.nn.attention import attention
from darl_jax.nn.blocks import recompute, silu, stack_blocks
from darl_jax.nn.dtypes import DTYPES
from darl_jax.nn.flops import linear as linear_flops
from darl_jax.nn.mesh_axes import pin_batch


@dataclasses.dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """Config of the U-Net; the defaults are CIFAR-10's.

    Attributes:
      width: channels of the trunk.
      embedding_width: channels of the input that come from the table of integers.
      blocks: ResBlocks of a resolution on the way down; there is one more on the way up.
      resolutions: number of resolutions, each half of the one before it.
      attention_sizes: rows of the feature maps where attention follows each block; in the middle
        there always is one.
      num_heads: heads of attention.
      groups: groups of GroupNorm.
      dropout: rate in the ResBlocks, in training.
      remat: computes blocks again in the backward pass instead of keeping what is inside them.
      unroll: blocks for each iteration of the loop over blocks.
    """

    name: str = "ardm_unet"
    width: int = 256
    embedding_width: int = 64
    blocks: int = 32
    resolutions: int = 1
    attention_sizes: tuple[int, ...] = (32, 16, 14, 8, 7, 4)
    num_heads: int = 1
    groups: int = 32
    dropout: float = 0.0
    remat: bool = False
    unroll: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(
            width=4, embedding_width=1, blocks=1, resolutions=1, num_heads=1, groups=1, unroll=1
        )
        self.check_part("embedding_width", "width")
        for key in ("groups", "num_heads"):
            if self.width % getattr(self, key):
                raise ValueError(
                    f"model.width={self.width} must be a multiple of model.{key}="
                    f"{getattr(self, key)}"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout={self.dropout} must be in [0, 1)")

    def check(self, shape: tuple[int, ...]) -> None:
        divisor = 2 ** (self.resolutions - 1)
        if len(shape) != 3 or shape[0] % divisor or shape[1] % divisor:
            raise ValueError(
                f"model.name={self.name!r} with model.resolutions={self.resolutions} needs images "
                f"whose sides are multiples of {divisor}, and the data has the shape {shape}"
            )

    def build(self, problem: Problem, rngs: nnx.Rngs) -> "UNet":
        return UNet(self, problem, rngs=rngs)

    def flops(self, problem: Problem) -> int:
        width, (height, columns, channels) = self.width, problem.shape
        ends = 9 * linear_flops(channels + problem.side_channels, width - self.embedding_width)
        ends += linear_flops(channels * self.embedding_width, self.embedding_width)
        ends += 9 * linear_flops(width, problem.outputs)
        total = height * columns * ends + TimeEmbedding.flops(width)
        for level in range(self.resolutions):
            places = (height >> level) * (columns >> level)
            total += self.blocks * self._step_flops(width, height >> level, places)
            total += (self.blocks + 1) * self._step_flops(2 * width, height >> level, places)
            if level:  # down to it, and up from it
                total += (places + 4 * places) * 9 * linear_flops(width, width)
        return total + 2 * self._block_flops(width, places) + self._attention_flops(places)

    def _step_flops(self, fan_in: int, rows: int, places: int) -> int:
        attends = self._attention_flops(places) if rows in self.attention_sizes else 0
        return self._block_flops(fan_in, places) + attends

    def _block_flops(self, fan_in: int, places: int) -> int:
        width = self.width
        convolutions = 9 * (linear_flops(fan_in, width) + linear_flops(width, width))
        shortcut = linear_flops(fan_in, width) if fan_in != width else 0
        return places * (convolutions + shortcut) + linear_flops(4 * width, width)

    def _attention_flops(self, places: int) -> int:
        return places * (
            4 * linear_flops(self.width, self.width) + 2 * linear_flops(self.width, places)
        )


class UNet(Network):
    """Embedded integers and what is known, a trunk of ResBlocks, and the outputs."""

    def __init__(self, config: UNetConfig, problem: Problem, *, rngs: nnx.Rngs):
        self.config, self.levels = config, problem.levels
        width, channels = config.width, problem.shape[-1]
        self.conv_in = convolution(
            config, channels + problem.side_channels, width - config.embedding_width, rngs=rngs
        )
        self.embedding = nnx.Embed(
            problem.levels, config.embedding_width, dtype=DTYPES[config.dtype], rngs=rngs
        )
        self.embedding_projection = dense(
            channels * config.embedding_width,
            config.embedding_width,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.time = TimeEmbedding(width, problem.steps, dtype=config.dtype, rngs=rngs)
        self.trunk = Level(config, problem.shape[0], config.resolutions, rngs=rngs)
        self.norm_out = group_norm(config, width, rngs=rngs)
        self.conv_out = convolution(config, width, problem.outputs, rngs=rngs)

    def __call__(
        self,
        values: Int[Array, "batch height width channel"],
        side: Float[Array, "batch height width side"],
        step: Int[Array, " batch"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch height width output"]:
        x = centered(values, self.levels, self.config.dtype)
        x = self.conv_in(jnp.concatenate([x, side.astype(x.dtype)], axis=-1))
        embedded = self.embedding(values).reshape(*values.shape[:-1], -1)
        x = jnp.concatenate([x, self.embedding_projection(embedded)], axis=-1)
        time = silu(self.time(step))
        x = self.trunk(pin_batch(x), time, key if self.config.dropout else None)
        return self.conv_out(swish_norm(self.norm_out, x))


class Level(nnx.Module):
    """Blocks of one resolution: down, the level below it or the middle, and up."""

    def __init__(self, config: UNetConfig, rows: int, levels: int, *, rngs: nnx.Rngs):
        self.config = config
        width, attends = config.width, rows in config.attention_sizes

        def stack(fan_in: int, number: int) -> Any:
            return stack_blocks(
                lambda key: Step(config, fan_in, attends=attends, rngs=nnx.Rngs(key)),
                number,
                rngs.params(),
            )

        self.down = stack(width, config.blocks)
        lowest = levels == 1
        self.downsample: Any = (
            None if lowest else convolution(config, width, width, stride=2, rngs=rngs)
        )
        self.below: Any = None if lowest else Level(config, rows // 2, levels - 1, rngs=rngs)
        self.upsample: Any = None if lowest else convolution(config, width, width, rngs=rngs)
        self.middle: Any = Step(config, width, attends=True, rngs=rngs) if lowest else None
        self.middle_end: Any = ResBlock(config, width, rngs=rngs) if lowest else None
        self.up = stack(2 * width, config.blocks + 1)

    def __call__(
        self,
        x: Float[Array, "batch height width channel"],
        time: Float[Array, "batch time"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch height width channel"]:
        config, first = self.config, x
        keys = None if key is None else jax.random.split(key, 2 * config.blocks + 4)

        def some(begin: int, end: int) -> Any:
            return None if keys is None else keys[begin:end]

        def one(number: int) -> Any:
            return None if keys is None else keys[number]

        x, skips = scan_steps(config, self.down, x, time, some(0, config.blocks), None)
        if self.below is None:
            x = self.middle(x, time, one(-1))
            x = self.middle_end(x, time, one(-2))
        else:
            x = self.below(self.downsample(x), time, one(-3))
            # Nearest neighbors, twice as large.
            x = self.upsample(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        assert skips is not None
        skips = jnp.concatenate([first[None], skips])[::-1]
        keys_up = some(config.blocks, 2 * config.blocks + 1)
        return scan_steps(config, self.up, x, time, keys_up, skips)[0]


def scan_steps(
    config: UNetConfig,
    steps: Any,
    x: Float[Array, "batch height width channel"],
    time: Float[Array, "batch time"],
    keys: Any,
    skips: Float[Array, "step batch height width channel"] | None,
) -> tuple[Array, Array | None]:
    """Applies stacked steps, on the way up each to its skip too; also returns all outputs."""
    graphdef, stacked = nnx.split(steps)

    def apply(x: Array, each: tuple[nnx.State, Any, Any]) -> tuple[Array, Array | None]:
        parameters, key, skip = each
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        x = pin_batch(nnx.merge(graphdef, parameters)(x, time, key))
        return x, x if skip is None else None

    if config.remat:
        apply = jax.checkpoint(apply, prevent_cse=False)
    return jax.lax.scan(apply, x, (stacked, keys, skips), unroll=config.unroll)


class Step(nnx.Module):
    """A ResBlock, and attention where it has one."""

    def __init__(self, config: UNetConfig, fan_in: int, *, attends: bool, rngs: nnx.Rngs):
        self.block = ResBlock(config, fan_in, rngs=rngs)
        self.attention = Attention(config, rngs=rngs) if attends else None

    def __call__(
        self,
        x: Float[Array, "batch height width in"],
        time: Float[Array, "batch time"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch height width channel"]:
        x = self.block(x, time, key)
        return x if self.attention is None else self.attention(x)


class ResBlock(nnx.Module):
    """Two convolutions after GroupNorm and swish, the time added between them."""

    def __init__(self, config: UNetConfig, fan_in: int, *, rngs: nnx.Rngs):
        width, zeros = config.width, nnx.initializers.zeros_init()
        self.dropout = config.dropout
        self.norm_in = group_norm(config, fan_in, rngs=rngs)
        self.conv_in = convolution(config, fan_in, width, rngs=rngs)
        self.time = dense(4 * width, width, dtype=config.dtype, rngs=rngs)
        self.norm_out = group_norm(config, width, rngs=rngs)
        self.conv_out = convolution(config, width, width, kernel_init=zeros, rngs=rngs)
        self.shortcut = (
            dense(fan_in, width, dtype=config.dtype, rngs=rngs) if fan_in != width else None
        )

    def __call__(
        self,
        x: Float[Array, "batch height width in"],
        time: Float[Array, "batch time"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "batch height width channel"]:
        y = self.conv_in(swish_norm(self.norm_in, x)) + self.time(time)[:, None, None]
        y = swish_norm(self.norm_out, y)
        if key is not None:
            kept = jax.random.bernoulli(key, 1.0 - self.dropout, y.shape)
            y = jnp.where(kept, y / (1.0 - self.dropout), 0.0)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return shortcut + self.conv_out(y)


class Attention(nnx.Module):
    """Attention over all places of a feature map, added to it."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads

        def project(**init: nnx.Initializer) -> nnx.Linear:
            return dense(config.width, config.width, dtype=config.dtype, rngs=rngs, **init)

        self.norm = group_norm(config, config.width, rngs=rngs)
        self.query, self.key, self.value = (project() for _ in range(3))
        self.out = project(kernel_init=nnx.initializers.zeros_init())

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        tokens = self.norm(x).reshape(len(x), -1, x.shape[-1])
        heads = (*tokens.shape[:2], self.num_heads, -1)
        query, key, value = (
            each(tokens).reshape(heads) for each in (self.query, self.key, self.value)
        )
        mixed = attention(query, key, value, mask="full")
        return x + self.out(mixed.reshape(tokens.shape)).reshape(x.shape)


def swish_norm(norm: nnx.GroupNorm, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GroupNorm and swish, of which the backward pass keeps the input alone."""
    return recompute(lambda x: silu(norm(x)))(x)


def group_norm(config: UNetConfig, width: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """GroupNorm, with statistics in float32 and two passes."""
    return nnx.GroupNorm(
        width,
        num_groups=config.groups,
        epsilon=1e-6,
        use_fast_variance=False,
        dtype=DTYPES[config.dtype],
        rngs=rngs,
    )


def convolution(
    config: UNetConfig,
    fan_in: int,
    fan_out: int,
    *,
    stride: int = 1,
    kernel_init: nnx.Initializer | None = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A 3 x 3 convolution with bias that keeps the size, or halves it."""
    return nnx.Conv(
        fan_in,
        fan_out,
        (3, 3),
        strides=stride,
        padding="SAME",
        kernel_init=kernel_init or nnx.initializers.lecun_normal(),
        dtype=DTYPES[config.dtype],
        rngs=rngs,
    )
