"""Measures of collapse: how alike vectors are, and how many directions they fill."""

import jax
import jax.numpy as jnp
from clu.metrics import Average
from jaxtyping import Array, Bool, Float

from darl_jax.nn.dtypes import at_least_float32

_SMALLEST_NORM = 1e-12  # torch's default in `normalize`, which NEPA takes cosines with


def unit(x: Float[Array, "*shape width"]) -> Float[Array, "*shape width"]:
    """Vectors of length 1, at least in float32; zero stays zero."""
    x = at_least_float32(x)
    square = jnp.sum(jax.lax.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, _SMALLEST_NORM**2))


def mean_pairwise_cosine(
    units: Float[Array, "batch item width"], mask: Bool[Array, " batch"]
) -> Average:
    """Mean cosine over all pairs of different items of the unmasked examples of a batch.

    1 where all are alike, and near 0 where they fill the space evenly. The sum over pairs is
    ||sum u||^2 - n, so it costs no product of matrices. Batches merge by their numbers of pairs.
    """
    units = jnp.where(mask[:, None, None], units, 0.0)
    number = jnp.sum(mask, dtype=units.dtype) * units.shape[1]
    total = jnp.sum(jax.lax.square(jnp.sum(units, axis=(0, 1))))
    return Average(total=total - jnp.sum(jax.lax.square(units)), count=number * (number - 1.0))


def effective_rank(units: Float[Array, "batch item width"], mask: Bool[Array, " batch"]) -> Average:
    """Effective rank of the items of the unmasked examples, as a mean over batches.

    exp(entropy of p), where p are the eigenvalues of the matrix of second moments, sum u u', over
    their sum: 1 where all items are alike or opposite, `width` where no direction is preferred.
    Roy and Vetterli (2007) take singular values in their place; settled here: eigenvalues, their
    squares, for what float32 leaves of a zero is then small. A batch with fewer items than `width`
    has no larger rank than their number.
    """
    units = jnp.where(mask[:, None, None], units, 0.0)
    moments = jnp.einsum("bid,bie->de", units, units, precision=jax.lax.Precision.HIGHEST)
    values = jnp.maximum(jnp.linalg.eigvalsh(moments), 0.0)
    share = values / jnp.maximum(jnp.sum(values), jnp.finfo(values.dtype).tiny)
    rank = jnp.exp(jnp.sum(jax.scipy.special.entr(share)))
    examples = jnp.sum(mask, dtype=rank.dtype)
    return Average(total=rank * examples, count=examples)
