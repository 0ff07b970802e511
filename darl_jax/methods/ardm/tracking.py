"""Running means of the losses of single steps, L_t, which policies are made from."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

DECAY = 0.95  # as in the published code


def updated(
    losses: Float[Array, "stage step"],
    cell: Int[Array, " batch"],
    value: Float[Array, " batch"],
    counts: Bool[Array, " batch"],
) -> Float[Array, "stage step"]:
    """Running means after the examples of a batch, as if they came one after the other.

    Each example that counts sets h = 0.95 h + 0.05 v in its cell, stage D + t, and the first one
    that a cell ever has sets h = v; a cell without any is negative. No sum depends on the order in
    which a device adds, so that runs repeat bit for bit.
    """
    number = jnp.arange(len(cell))
    same = (cell[:, None] == cell) & counts[:, None] & counts
    later = jnp.sum(same & (number > number[:, None]), axis=1)
    first = counts & ~jnp.any(same & (number < number[:, None]), axis=1)
    old = losses.reshape(-1)[cell]
    seen = old >= 0
    weight = DECAY**later * jnp.where(first & ~seen, 1.0, 1.0 - DECAY)
    # `where`, not a product: rows that do not count may hold anything.
    new = jnp.sum(jnp.where(same, weight * jnp.where(counts, value, 0.0), 0.0), axis=1)
    new += jnp.where(seen, DECAY ** jnp.sum(same, axis=1) * old, 0.0)
    # One example of each cell writes, the others past the end, where nothing is written.
    target = jnp.where(first, cell, losses.size)
    return losses.reshape(-1).at[target].set(new, mode="drop").reshape(losses.shape)
