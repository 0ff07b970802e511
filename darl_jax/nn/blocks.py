"""Transformer blocks, and the scan over a stack of them; shared by all methods."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.nn import attention as attention_lib
from darl_jax.nn import positions
from darl_jax.nn.dtypes import DTYPES, at_least_float32

INITIALIZATIONS = ("xavier", "normal")
MLPS = ("gelu", "swiglu")
NORMS = ("layer", "rms")
QK_NORMS = ("none", "plain", "scale")
TOKEN_STDDEV = 0.02  # Learned tokens and positions start as N(0, 0.02), as in MAE.

_PROJECTION = "projection"
REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    # Keeps the outputs of projections and recomputes the rest, attention included.
    "dots": jax.checkpoint_policies.save_only_these_names(_PROJECTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Rotation angles, shared by all examples or one set for each; None without rotation.
Angles = Float[np.ndarray, "token pair"] | Float[Array, "*set token pair"] | None


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape of a stack of blocks and the way it is computed.

    `remat`, `unroll` and `attention` change speed and memory, never the result.
    """

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072  # of the hidden layer, gated or not
    mlp: str = "gelu"  # 'gelu', or 'swiglu': down(silu(gate(x)) * up(x))
    mlp_bias: bool = True
    attention_bias: bool = True  # of query, key, value and output projections
    norm: str = "layer"  # 'layer' or 'rms'
    norm_epsilon: float = 1e-6
    qk_norm: str = "none"  # LayerNorm of a head's queries and keys: 'plain', or with a 'scale'
    layer_scale: float = 0.0  # initial factor of both branches (LayerScale); 0 for none
    drop_path: float = 0.0  # of the last block; linear from 0 at the first; in training only
    initialization: str = "xavier"  # of kernels: 'xavier' (uniform), or 'normal': N(0, 0.02)
    fused_qkv_init: bool = False  # the Xavier bound of one D x 3D matrix, as in MAE's torch code
    dtype: str = "bfloat16"  # of activations and matmul inputs; parameters are float32
    attention: str = "auto"  # one of attention.IMPLEMENTATIONS
    remat: str = "none"  # one of REMAT_POLICIES
    unroll: int = 1  # blocks for each iteration of the scan over blocks

    def __post_init__(self) -> None:
        self.check_names(
            dtype=DTYPES,
            attention=attention_lib.IMPLEMENTATIONS,
            remat=REMAT_POLICIES,
            initialization=INITIALIZATIONS,
            mlp=MLPS,
            norm=NORMS,
            qk_norm=QK_NORMS,
        )
        if self.dtype == "float64" and jnp.result_type(float) != jnp.float64:
            raise ValueError("model.dtype='float64' needs JAX_ENABLE_X64=1 in the environment")
        self.check_positive("width", "depth", "num_heads", "mlp_dim", "unroll")
        if self.norm_epsilon <= 0.0:
            raise ValueError(f"model.norm_epsilon={self.norm_epsilon} must be positive")
        if self.layer_scale < 0.0:
            raise ValueError(f"model.layer_scale={self.layer_scale} must be at least 0")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"model.drop_path={self.drop_path} must be in [0, 1)")
        if self.width % self.num_heads:
            raise ValueError(
                f"model.width={self.width} must be a multiple of model.num_heads={self.num_heads}"
            )

    def check_names(self, **valid: Any) -> None:
        """Raises ValueError where a key's value is not one of the valid ones."""
        for key, names in valid.items():
            if getattr(self, key) not in names:
                raise ValueError(
                    f"model.{key}={getattr(self, key)!r} is unknown; choose from {list(names)}"
                )

    def check_positive(self, *keys: str) -> None:
        """Raises ValueError where a key's value is less than 1."""
        for key in keys:
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1")

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads


def flat_dot_general(x: Array, kernel: Array, _: Any, **kwargs: Any) -> Float[Array, "..."]:
    """`jax.lax.dot_general` of (..., in) and (in, out) as one flat matmul.

    The weight's gradient is then a plain matmul: on a CPU several times as fast as a contraction
    over (batch, token).
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
    use_bias: bool = True,
    kernel_init: nnx.Initializer | None = None,
) -> nnx.Linear:
    """A projection with Xavier-uniform weights and zero bias (Table 8; MAE's initialization)."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=DTYPES[dtype],
        kernel_init=kernel_init or nnx.initializers.xavier_uniform(),
        dot_general=flat_dot_general,
        rngs=rngs,
    )


def kernel_initializer(config: TransformerConfig, scale: float = 1.0) -> nnx.Initializer:
    """Initializer of kernels; `scale` multiplies Xavier's variance.

    'normal' is torch's truncated normal as ViTs of the Transformers library use it: it cuts at
    +-2, which is 100 standard deviations.
    """
    if config.initialization == "normal":
        return nnx.initializers.normal(TOKEN_STDDEV)
    return nnx.initializers.variance_scaling(scale, "fan_avg", "uniform")


def recompute(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a cheap function to keep only its arguments for the backward pass.

    Independent of `remat`: elementwise work costs less than writing and reading its results.
    """
    return jax.checkpoint(function, policy=jax.checkpoint_policies.nothing_saveable)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm that keeps only its input for the backward pass."""

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return recompute(super().__call__)(x, mask=mask)


class RMSNorm(nnx.RMSNorm):
    """RMSNorm (arXiv 1910.07467) that keeps only its input for the backward pass."""

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        return recompute(super().__call__)(x, mask)


def make_norm(
    config: TransformerConfig, *, rngs: nnx.Rngs, kind: str | None = None, width: int | None = None
) -> LayerNorm | RMSNorm:
    """Norm over channels, the config's unless given; statistics are float32 and two-pass."""
    make = {"layer": LayerNorm, "rms": RMSNorm}[kind or config.norm]
    return make(
        width or config.width,
        epsilon=config.norm_epsilon,
        use_fast_variance=False,
        dtype=DTYPES[config.dtype],
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head self-attention with separate query, key, value and output projections."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.num_heads = config.num_heads
        self.implementation = config.attention
        # One matrix of D x 3D has the bound sqrt(6 / 4D), one of D x D has sqrt(6 / 2D).
        init = kernel_initializer(config, 0.5 if config.fused_qkv_init else 1.0)

        def project(kernel_init: nnx.Initializer) -> nnx.Linear:
            return linear(
                config.width,
                config.width,
                use_bias=config.attention_bias,
                dtype=config.dtype,
                rngs=rngs,
                kernel_init=kernel_init,
            )

        self.query, self.key, self.value = (project(init) for _ in range(3))
        self.out = project(kernel_initializer(config))

        def head_norm() -> LayerNorm | None:
            if config.qk_norm == "none":
                return None
            return LayerNorm(
                config.head_dim,
                epsilon=config.norm_epsilon,
                use_scale=config.qk_norm == "scale",
                use_bias=False,
                use_fast_variance=False,
                dtype=DTYPES[config.dtype],
                rngs=rngs,
            )

        self.query_norm, self.key_norm = head_norm(), head_norm()

    def __call__(
        self, x: Float[Array, "batch token width"], *, mask: attention_lib.Mask, angles: Angles
    ) -> Float[Array, "batch token width"]:
        return self.attend(self.queries(x, angles), *self.keys_values(x, angles), mask=mask)

    def heads(
        self,
        y: Float[Array, "*batch width"],
        norm: LayerNorm | None = None,
        angles: Angles = None,
    ) -> Float[Array, "*batch head channel"]:
        """Splits a projection into heads; norms and rotates them where there is a norm, angles."""
        y = y.reshape(*y.shape[:-1], self.num_heads, -1)
        if norm is not None:
            y = norm(y)
        return y if angles is None else positions.rotate(y, angles)

    def queries(
        self,
        x: Float[Array, "*batch width"],
        angles: Angles = None,
        project: nnx.Linear | None = None,
    ) -> Float[Array, "*batch head channel"]:
        """Query projection, the block's own or another."""
        return self.heads((project or self.query)(x), self.query_norm, angles)

    def keys_values(
        self, x: Float[Array, "*batch width"], angles: Angles = None
    ) -> tuple[Float[Array, "*batch head channel"], Float[Array, "*batch head channel"]]:
        """Key and value projections."""
        return self.heads(self.key(x), self.key_norm, angles), self.heads(self.value(x))

    def attend(
        self,
        query: Float[Array, "batch token head channel"],
        key: Float[Array, "batch token head channel"],
        value: Float[Array, "batch token head channel"],
        *,
        mask: attention_lib.Mask,
    ) -> Float[Array, "batch token width"]:
        """Attention and output projection."""
        y = attention_lib.attention(
            query, key, value, mask=mask, implementation=self.implementation
        )
        return self.out(y.reshape(*y.shape[:2], -1))


class Mlp(nnx.Module):
    """width -> mlp_dim -> width: down(gelu(up(x))), or SwiGLU's down(silu(gate(x)) * up(x)).

    SwiGLU: Shazeer 2020, arXiv 2002.05202.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        def project(*sizes: int) -> nnx.Linear:
            return linear(
                *sizes,
                use_bias=config.mlp_bias,
                dtype=config.dtype,
                rngs=rngs,
                kernel_init=kernel_initializer(config),
            )

        self.gate = project(config.width, config.mlp_dim) if config.mlp == "swiglu" else None
        self.up = project(config.width, config.mlp_dim)
        self.down = project(config.mlp_dim, config.width)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        if self.gate is None:
            return recompute(lambda hidden: self.down(gelu(hidden)))(self.up(x))
        gated = recompute(lambda gate, hidden: self.down(silu(gate) * hidden))
        return gated(self.gate(x), self.up(x))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), exact, computed in float32.

    Written with erf: `jax.nn.gelu(approximate=False)` goes through erfc and takes 2.6 times as long
    on a CPU for relative accuracy where the value is below 1e-6.
    """
    x32 = at_least_float32(x)
    cdf = 0.5 * (1.0 + jax.lax.erf(x32 * math.sqrt(0.5)))
    return (x32 * cdf).astype(x.dtype)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x sigmoid(x), computed in float32."""
    return jax.nn.silu(at_least_float32(x)).astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    With LayerScale (arXiv 2103.17239) each branch is multiplied by a learned vector.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.norm_attention = make_norm(config, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.norm_mlp = make_norm(config, rngs=rngs)
        self.mlp = Mlp(config, rngs=rngs)
        self.layer_scale = (
            nnx.Param(jnp.full((2, config.width), config.layer_scale, jnp.float32))
            if config.layer_scale
            else None
        )

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
        x: Float[Array, "*#batch width"],
        attended: Float[Array, "*#batch width"],
        branch_scales: Float[Array, "2 image"] | None = None,
    ) -> Float[Array, "*#batch width"]:
        """The block's output from its input and the attention's output."""

        def scaled(branch: Array, index: int) -> Array:
            if self.layer_scale is not None:
                branch = branch * self.layer_scale[...][index].astype(branch.dtype)
            if branch_scales is not None:
                branch = branch * branch_scales[index][:, None, None].astype(branch.dtype)
            return branch

        x = x + scaled(attended, 0)
        return x + scaled(self.mlp(self.norm_mlp(x)), 1)


def drop_path_scales(
    key: PRNGKeyArray, rate: float, depth: int, batch: int
) -> Float[Array, "depth 2 batch"]:
    """Factors of the blocks' branches: 0 where dropped, else 1 / (1 - rate of the block).

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382) as in MAE's fine-tuning: each branch of
    each example is dropped independently, at a rate that is linear in the block's number, 0 for the
    first block and `rate` for the last.
    """
    keep = 1.0 - jnp.linspace(0.0, rate, depth)[:, None, None]
    kept = jax.random.bernoulli(key, keep, (depth, 2, batch))
    return kept / keep


def stack_blocks(create: Callable[[PRNGKeyArray], nnx.Module], number: int, key: Array) -> Any:
    """`number` modules of one kind, with their parameters stacked along a new first dimension."""
    return nnx.vmap(create, in_axes=0, out_axes=0)(jax.random.split(key, number))


def unstack_blocks(blocks: nnx.Module, number: int) -> list[Any]:
    """The single modules of a stack.

    In a loop over them, unlike in a scan, the compiler drops outputs of the last that are not used.
    """
    graphdef, stacked = nnx.split(blocks)
    return [
        nnx.merge(graphdef, jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(number)
    ]


def scan_blocks(
    block: Callable[[Any, Any], tuple[Any, Any]], x: Any, per_block: Any, config: TransformerConfig
) -> tuple[Any, Any]:
    """Applies stacked blocks one after the other, with the config's `remat` and `unroll`.

    `block` maps (carry, its share of `per_block`) to (carry, output to stack); the arrays of
    `per_block` have the block as their first dimension.
    """
    policy = REMAT_POLICIES[config.remat]
    if policy is not None:
        block = jax.checkpoint(block, policy=policy, prevent_cse=False)
    return jax.lax.scan(block, x, per_block, unroll=min(config.unroll, config.depth))
