"""DiffWave on audio (arXiv 2009.09761, as in appendix D of arXiv 2110.02037): not causal."""

import dataclasses
import math
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
from darl_jax.nn.blocks import recompute, silu, stack_blocks
from darl_jax.nn.dtypes import DTYPES
from darl_jax.nn.flops import linear as linear_flops
from darl_jax.nn.mesh_axes import pin_batch


@dataclasses.dataclass(frozen=True)
class DiffWaveConfig(NetworkConfig):
    """Config of DiffWave; the defaults are SC09's.

    Attributes:
      width: channels of the residual and the skip path.
      embedding_width: channels of the input that come from the table of integers.
      blocks: residual blocks.
      cycle: block i has the dilation 2^(i mod cycle). The paper says 11, and the largest of 2048
        that it names needs the code's 12.
      remat: computes blocks again in the backward pass instead of keeping what is inside them.
      unroll: blocks for each iteration of the loop over blocks.
    """

    name: str = "ardm_diffwave"
    width: int = 256
    embedding_width: int = 64
    blocks: int = 36
    cycle: int = 12
    remat: bool = False
    unroll: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(width=4, embedding_width=1, blocks=1, cycle=1, unroll=1)
        self.check_part("embedding_width", "width")

    @property
    def dilations(self) -> tuple[int, ...]:
        """Distance of the taps of each block."""
        return tuple(2 ** (block % self.cycle) for block in range(self.blocks))

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2:
            raise ValueError(
                f"model.name={self.name!r} needs data of the shape (length, channels), not {shape}"
            )

    def build(self, problem: Problem, rngs: nnx.Rngs) -> "DiffWave":
        return DiffWave(self, problem, rngs=rngs)

    def flops(self, problem: Problem) -> int:
        width, (length, channels) = self.width, problem.shape
        ends = 3 * linear_flops(channels + problem.side_channels, width - self.embedding_width)
        ends += linear_flops(channels * self.embedding_width, self.embedding_width)
        ends += linear_flops(width, width) + linear_flops(width, problem.outputs)
        block = length * 8 * linear_flops(width, width) + linear_flops(4 * width, width)
        return length * ends + self.blocks * block + TimeEmbedding.flops(width)


class DiffWave(Network):
    """Embedded samples and what is known, dilated residual blocks, the sum of their skips."""

    def __init__(self, config: DiffWaveConfig, problem: Problem, *, rngs: nnx.Rngs):
        self.config, self.levels = config, problem.levels
        width, dtype, channels = config.width, config.dtype, problem.shape[-1]
        narrow = config.embedding_width
        he_normal = nnx.initializers.he_normal()
        fan_in = 3 * (channels + problem.side_channels)
        self.conv_in = dense(fan_in, width - narrow, dtype=dtype, rngs=rngs)
        self.embedding = nnx.Embed(problem.levels, narrow, dtype=DTYPES[dtype], rngs=rngs)
        self.embedding_projection = dense(channels * narrow, narrow, dtype=dtype, rngs=rngs)
        self.time = TimeEmbedding(width, problem.steps, dtype=dtype, rngs=rngs)
        self.blocks = stack_blocks(
            lambda key: DilatedBlock(config, rngs=nnx.Rngs(key)), config.blocks, rngs.params()
        )
        self.hidden_out = dense(width, width, dtype=dtype, rngs=rngs, kernel_init=he_normal)
        zeros = nnx.initializers.zeros_init()
        self.out = dense(width, problem.outputs, dtype=dtype, rngs=rngs, kernel_init=zeros)

    def __call__(
        self,
        values: Int[Array, "batch position channel"],
        side: Float[Array, "batch position side"],
        step: Int[Array, " batch"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch position output"]:
        del key
        config = self.config
        x = centered(values, self.levels, config.dtype)
        x = self.conv_in(taps(jnp.concatenate([x, side.astype(x.dtype)], axis=-1), 1, 1))
        embedded = self.embedding(values).reshape(*values.shape[:-1], -1)
        x = jax.nn.relu(jnp.concatenate([x, self.embedding_projection(embedded)], axis=-1))
        time = silu(self.time(step))
        graphdef, stacked = nnx.split(self.blocks)

        def block(carry: tuple[Array, Array], each: tuple[Any, Array]) -> tuple[Any, None]:
            x, skips = carry
            parameters, dilation = each
            x, skip = nnx.merge(graphdef, parameters)(x, time, dilation)
            return (pin_batch(x), pin_batch(skips + skip)), None

        if config.remat:
            block = jax.checkpoint(block, prevent_cse=False)
        x = pin_batch(x)
        per_block = stacked, jnp.array(config.dilations, jnp.int32)
        (_, skips), _ = jax.lax.scan(
            block, (x, jnp.zeros_like(x)), per_block, unroll=min(config.unroll, config.blocks)
        )
        skips = skips / math.sqrt(config.blocks)
        return self.out(jax.nn.relu(self.hidden_out(skips)))


class DilatedBlock(nnx.Module):
    """tanh(conv) sigmoid(conv) of the input and the time, into the residual and the skip path."""

    def __init__(self, config: DiffWaveConfig, *, rngs: nnx.Rngs):
        width, he_normal = config.width, nnx.initializers.he_normal()
        self.reach = max(config.dilations)
        self.time = dense(4 * width, width, dtype=config.dtype, rngs=rngs)

        def project(fan_in: int) -> nnx.Linear:
            return dense(fan_in, width, dtype=config.dtype, rngs=rngs, kernel_init=he_normal)

        self.filter, self.gate = project(3 * width), project(3 * width)
        self.residual, self.skip = project(width), project(width)

    def __call__(
        self,
        x: Float[Array, "batch position channel"],
        time: Float[Array, "batch time"],
        dilation: Int[Array, ""],
    ) -> tuple[Float[Array, "batch position channel"], Float[Array, "batch position channel"]]:
        seen = taps(x + self.time(time)[:, None], dilation, self.reach)
        gated = recompute(lambda a, b: jnp.tanh(a) * jax.nn.sigmoid(b))
        y = gated(self.filter(seen), self.gate(seen))
        return (x + self.residual(y)) / math.sqrt(2.0), self.skip(y)


def taps(
    x: Float[Array, "batch position channel"], dilation: int | Int[Array, ""], reach: int
) -> Float[Array, "batch position taps"]:
    """The channels of positions p - dilation, p and p + dilation side by side, 0 outside.

    A dense layer on them is a convolution of width 3, written so that one loop runs over blocks of
    any dilation up to `reach`.
    """
    padded = jnp.pad(x, ((0, 0), (reach, reach), (0, 0)))
    begins = (reach - dilation, reach, reach + dilation)
    moved = [jax.lax.dynamic_slice_in_dim(padded, each, x.shape[1], axis=1) for each in begins]
    return jnp.concatenate(moved, axis=-1)
