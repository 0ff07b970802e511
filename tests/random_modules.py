"""Modules with random parameters, made without compiling their initialization."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn.vit import ViTConfig

Module = TypeVar("Module", bound=nnx.Module)


def random_module(create: Callable[[nnx.Rngs], Module], seed: int = 0) -> Module:
    """What `create` makes, with every parameter random: no bias is 0 and no scale is 1.

    Kernels are N(0, 1/in), so that a projection keeps the size of what it is given.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = rng.normal(size=leaf.shape)
        if "kernel" in name:
            values /= np.sqrt(leaf.shape[-2])
        else:
            values *= 0.3
        return jnp.asarray(values + ("scale" in name), leaf.dtype)

    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, shapes))


def random_darl(
    vit: ViTConfig,
    decoder: PatchDecoderConfig | None = None,
    *,
    grid: tuple[int, int],
    **options: bool,
) -> DARL:
    """A model of RGB patches; `options` are `denoising` and `two_stream`."""
    options = {"denoising": False} | options
    decoder = decoder or PatchDecoderConfig()
    return random_module(
        lambda rngs: DARL(vit, decoder, grid=grid, channels=3, rngs=rngs, **options)
    )
