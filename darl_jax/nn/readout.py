"""Readout: one vector for an image from its tokens (Section 4.1)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

POOLINGS = ("mean", "last")


def readout(
    tokens: Float[Array, "*batch token width"], pooling: str
) -> Float32[Array, "*batch width"]:
    """Input of a head: the pooled tokens of a whole image, in float32.

    'mean' averages all tokens but the first, the start token's; 'last' is the last patch's token,
    which attends to the whole image under a causal mask.

    Raises:
      ValueError: the pooling is unknown.
    """
    if pooling == "mean":
        return jnp.mean(tokens[..., 1:, :], axis=-2, dtype=jnp.float32)
    if pooling == "last":
        return tokens[..., -1, :].astype(jnp.float32)
    raise ValueError(f"pooling={pooling!r} is unknown; choose from {POOLINGS}")
