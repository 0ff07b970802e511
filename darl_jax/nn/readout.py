"""Readout: one vector for an image from its tokens (Section 4.1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from darl_jax.nn.dtypes import at_least_float32

POOLINGS = ("mean", "last", "start")


def readout(
    tokens: Float[Array, "*batch token width"], pooling: str, *, start_tokens: int = 1
) -> Float[Array, "*batch width"]:
    """Input of a head: the pooled tokens of a whole image, in float32.

    'mean' averages the patches' tokens; 'last' is the last patch's, which attends to the whole
    image under a causal mask; 'start' is the start token's, a class token under full attention.

    Args:
      tokens: of a sequence that begins with the start token, if there is one.
      pooling: one of POOLINGS.
      start_tokens: 1, or 0 without a start token.

    Raises:
      ValueError: the pooling is unknown, or there is no start token.
    """
    if pooling == "mean":
        return jnp.mean(at_least_float32(tokens[..., start_tokens:, :]), axis=-2)
    if pooling == "last":
        return at_least_float32(tokens[..., -1, :])
    if pooling == "start" and start_tokens:
        return at_least_float32(tokens[..., 0, :])
    if pooling == "start":
        raise ValueError("pooling='start' needs config.model.start_token='learned'")
    raise ValueError(f"pooling={pooling!r} is unknown; choose from {POOLINGS}")
