"""Scaled dot-product attention by several kernels behind one function."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from darl_jax.nn.mesh_axes import BATCH_AXES

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

# Attention mask: 'causal' (key <= query), 'full', or for each example the length of a prefix that
# all tokens attend to, after which attention is causal (AIM's prefix mask).
Mask = Literal["causal", "full"] | Int[Array, " batch"]

_LANES = 128  # Splash attention works on blocks of this many tokens and channels.
_SPLASH_MIN_TOKENS = 1024  # Below this padding to blocks costs more than the T x T logits.


def choose_implementation(
    implementation: str,
    *,
    device: Any,
    dtype: str,
    head_dim: int,
    tokens: int,
    prefix_mask: bool = False,
) -> str:
    """Resolves `implementation` to a kernel that runs on a device.

    Raises:
      ValueError: the name is unknown, or the kernel does not run there; splash attention does not
        with a prefix mask, for its masks are the same for all examples.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention={implementation!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    # The backward pass with a mask of its own for each example takes even lengths only.
    length_fits = not prefix_mask or tokens % 2 == 0
    cudnn_fits = dtype in ("bfloat16", "float16") and length_fits and _cudnn_takes(device, head_dim)
    if implementation == "auto":
        if cudnn_fits:
            return "cudnn"
        if device.platform == "tpu" and tokens >= _SPLASH_MIN_TOKENS and not prefix_mask:
            return "splash"
        return "xla"
    if implementation == "cudnn" and not cudnn_fits:
        even = ", and with a prefix mask an even number of tokens" if prefix_mask else ""
        raise ValueError(
            "attention='cudnn' needs an NVIDIA GPU of compute capability 8.0 or more, a 16-bit "
            "dtype and a head_dim that is a multiple of 8 and at most 128 (256 from 9.0 on)"
            f"{even}; here are {device.device_kind}, {dtype}, head_dim {head_dim} and {tokens} "
            "tokens"
        )
    if implementation == "splash" and device.platform != "tpu":
        raise ValueError(f"attention='splash' needs a TPU, not platform {device.platform}")
    if implementation == "splash" and prefix_mask:
        raise ValueError("attention='splash' cannot take a prefix mask; choose 'xla'")
    return implementation


def _cudnn_takes(device: Any, head_dim: int) -> bool:
    """True where cuDNN's flash attention runs; only NVIDIA's devices have a capability number."""
    try:
        capability = float(getattr(device, "compute_capability", ""))
    except ValueError:
        return False
    return capability >= 8.0 and head_dim % 8 == 0 and head_dim <= (256 if capability >= 9 else 128)


def attention(
    query: Float[Array, "batch token head channel"],
    key: Float[Array, "batch token head channel"],
    value: Float[Array, "batch token head channel"],
    *,
    mask: Mask,
    implementation: str = "auto",
) -> Float[Array, "batch token head channel"]:
    """softmax(q k' / sqrt(channel) + mask) v, with logits and softmax in float32.

    Raises:
      ValueError: a prefix mask for splash attention, whose masks are the same for all examples, or
        an unknown implementation.
    """
    if implementation == "auto":
        implementation = choose_implementation(
            "auto",
            device=jax.devices()[0],
            dtype=query.dtype.name,
            head_dim=query.shape[-1],
            tokens=query.shape[1],
            prefix_mask=not isinstance(mask, str),
        )
    if implementation == "xla":
        return plain_attention(query, key, value, _visible(mask, query.shape[1]))
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=None if isinstance(mask, str) else prefix_mask(mask, query.shape[1]),
            is_causal=isinstance(mask, str) and mask == "causal",
            implementation="cudnn",
        )
    if implementation == "splash":
        if not isinstance(mask, str):
            raise ValueError("attention='splash' cannot take a prefix mask; choose 'xla'")
        return _splash(query, key, value, causal=mask == "causal")
    raise ValueError(f"attention={implementation!r} names no kernel")


def plain_attention(
    query: Float[Array, "batch query head channel"],
    key: Float[Array, "batch key head channel"],
    value: Float[Array, "batch key head channel"],
    visible: Bool[Array, "#batch 1 #query key"] | None,
) -> Float[Array, "batch query head channel"]:
    """Attention in XLA; `visible` is True where a query attends to a key, None for everywhere.

    `jax.nn.dot_product_attention(implementation='xla')` is the same, and takes a fifth longer on a
    CPU, forward and backward.
    """
    # So that matmuls of the backward pass have 16-bit inputs too (issue 24047 of JAX).
    of_bfloat16 = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    einsum = functools.partial(
        jnp.einsum,
        preferred_element_type=jnp.promote_types(query.dtype, jnp.float32),
        precision=of_bfloat16 if query.dtype == jnp.bfloat16 else None,
    )
    logits = einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    if visible is not None:
        logits = jnp.where(visible, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
    return einsum("bhqk,bkhd->bqhd", weights, value).astype(query.dtype)


def _visible(mask: Mask, tokens: int) -> Bool[Array, "#batch 1 query key"] | None:
    """True where a query attends to a key; None for full attention."""
    if not isinstance(mask, str):
        return prefix_mask(mask, tokens)
    return prefix_mask(jnp.zeros(1, jnp.int32), tokens) if mask == "causal" else None


def prefix_mask(prefix: Int[Array, " batch"], tokens: int) -> Bool[Array, "batch 1 query key"]:
    """True where (key < prefix) or (key <= query)."""
    position = jnp.arange(tokens)
    causal = position[None, :] <= position[:, None]
    return (position < prefix[:, None, None, None]) | causal


def _splash(
    query: Float[Array, "batch token head channel"],
    key: Float[Array, "batch token head channel"],
    value: Float[Array, "batch token head channel"],
    *,
    causal: bool,
    interpret: bool = False,
) -> Float[Array, "batch token head channel"]:
    """Splash attention on padded blocks, each device on its own examples and heads."""
    _, tokens, _, channels = query.shape
    padded = math.ceil(tokens / _LANES) * _LANES
    lanes = math.ceil(channels / _LANES) * _LANES

    def to_blocks(x: Array) -> Array:
        # Zero channels leave q k' as it is; padded tokens are a segment of their own.
        x = jnp.pad(x, ((0, 0), (0, padded - tokens), (0, 0), (0, lanes - channels)))
        return jnp.swapaxes(x, 1, 2)

    segments = (jnp.arange(padded) >= tokens).astype(jnp.int32)
    segment_ids = splash_attention_kernel.SegmentIds(q=segments, kv=segments)

    def on_device(q: Array, k: Array, v: Array) -> Array:
        masks = splash_attention_mask
        one = (masks.CausalMask if causal else masks.FullMask)((padded, padded))
        kernel = splash_attention_kernel.make_splash_mha(
            masks.MultiHeadMask([one] * q.shape[1]),
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=segment_ids))(q, k, v)

    mapped: Callable[[Array, Array, Array], Array] = on_device
    if not jax.sharding.get_abstract_mesh().empty:
        spec = PartitionSpec(BATCH_AXES, "tensor")
        mapped = jax.shard_map(on_device, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    # The kernel does not scale its logits.
    out = mapped(to_blocks(query * channels**-0.5), to_blocks(key), to_blocks(value))
    return jnp.swapaxes(out, 1, 2)[:, :tokens, :, :channels].astype(query.dtype)
