"""Number formats of activations."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# float64 is for comparisons with references; it needs JAX_ENABLE_X64=1.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Casts 16-bit numbers to float32, for sums and functions that need its digits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
