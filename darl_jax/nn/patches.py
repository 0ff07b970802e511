"""Images as sequences of patches (Section 3.1), and the pixel values of the losses."""

from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8

from darl_jax.nn.dtypes import at_least_float32


def standardize(
    images: UInt8[Array, "batch height width channel"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[Array, "batch height width channel"]:
    """Pixels as (value / 255 - mean) / std, in float32 (float64 where JAX has it).

    The paper's losses (0.146 to 0.194, Table 15) fit targets of unit variance; settled here as
    standardization by the mean and standard deviation of each channel, in units of [0, 1].
    """
    mean_, std_ = (jnp.asarray(value, float) for value in (mean, std))
    return (images.astype(float) / 255.0 - mean_) / std_


def unstandardize(
    images: Float[Array, "batch height width channel"],
    mean: Sequence[float],
    std: Sequence[float],
) -> UInt8[Array, "batch height width channel"]:
    """The inverse of `standardize`, rounded and clipped to 8-bit pixels."""
    mean_, std_ = (jnp.asarray(value, jnp.float32) for value in (mean, std))
    return jnp.clip(jnp.round((images * std_ + mean_) * 255.0), 0, 255).astype(jnp.uint8)


def patchify(
    images: Shaped[Array, "batch height width channel"], patch_size: int
) -> Shaped[Array, "batch patch pixel"]:
    """Cuts images into patches in raster order; a patch's pixels are (row, column, channel).

    Raises:
      einops.EinopsError: the patch size does not divide the image.
    """
    return einops.rearrange(
        images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size
    )


def unpatchify(
    patches: Shaped[Array, "batch patch pixel"], patch_size: int, grid: tuple[int, int]
) -> Shaped[Array, "batch height width channel"]:
    """The inverse of `patchify` for a grid of (rows, columns) patches."""
    sizes = {"h": grid[0], "w": grid[1], "p": patch_size, "q": patch_size}
    return einops.rearrange(patches, "b (h w) (p q c) -> b (h p) (w q) c", **sizes)


def patch_statistics(
    patches: Float[Array, "batch patch pixel"],
) -> tuple[Float[Array, "batch patch 1"], Float[Array, "batch patch 1"]]:
    """Mean and standard deviation of each patch over its pixel values.

    As in MAE, which Appendix B.2 follows: unbiased variance, and 1e-6 inside the square root.
    """
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + 1e-6)


def normalize_patches(
    patches: Float[Array, "batch patch pixel"],
) -> Float[Array, "batch patch pixel"]:
    """Each patch by its own mean and standard deviation (Appendix B.2, Table 14)."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


def squared_error(
    predicted: Float[Array, "*batch pixel"], target: Float[Array, "*batch pixel"]
) -> Float[Array, "*batch"]:
    """Squared error of each patch, averaged over its pixel values, in float32."""
    return jnp.mean(jax.lax.square(at_least_float32(predicted) - target), axis=-1)
