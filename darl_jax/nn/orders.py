"""Orders in which a model reads and predicts the patches of an image (Section 4.4, Appendix A.5).

An order is a permutation: entry i is the raster number of the patch at position i of the sequence.
"""

import dataclasses
import math
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, Shaped

from darl_jax.nn.positions import Grid

Order = Int[np.ndarray, " position"] | Int[Array, "batch position"]  # shared, or one for each image

BLOCKED = ("nested_raster", "round_robin")
FIXED = ("raster", *BLOCKED, "spiral", "checkerboard", "permutation")
ORDERS = (*FIXED, "random")


@dataclasses.dataclass(frozen=True)
class OrderConfig:
    """An order of the patches.

    The names: 'raster'; 'nested_raster', block after block, each in raster order; 'round_robin',
    the first patch of each block, then the second of each, and so on; 'spiral', from the upper left
    corner clockwise inwards; 'checkerboard', the fields of one color, then the others;
    'permutation', drawn once; 'random', drawn anew for each image, which needs two streams.
    """

    name: str = "raster"
    block: int = 2  # rows and columns of patches in a block of 'nested_raster' and 'round_robin'
    seed: int = 0  # of 'permutation'

    def __post_init__(self) -> None:
        if self.name not in ORDERS:
            raise ValueError(
                f"model.order.name={self.name!r} is unknown; choose from {list(ORDERS)}"
            )
        if self.block < 1:
            raise ValueError(f"model.order.block={self.block} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"model.order.seed={self.seed} must not be negative")

    @property
    def title(self) -> str:
        """The order in words."""
        name = self.name.replace("_", " ").replace("round robin", "round-robin")
        return f"{name} {self.block} x {self.block}" if self.name in BLOCKED else name

    def check(self, grid: Grid) -> None:
        """Raises ValueError where blocks do not divide the grid."""
        if self.name in BLOCKED and (grid[0] % self.block or grid[1] % self.block):
            raise ValueError(
                f"model.order.block={self.block} must divide the grid of {grid[0]} x {grid[1]} "
                f"patches, in which {self.name!r} counts its blocks"
            )


def fixed_order(config: OrderConfig, grid: Grid) -> Int[np.ndarray, " patch"]:
    """The one order of all images.

    Raises:
      ValueError: the order is drawn for each image, or its blocks do not divide the grid.
    """
    config.check(grid)
    rows, columns = grid
    raster = np.arange(rows * columns).reshape(grid)
    if config.name == "raster":
        return raster.ravel()
    if config.name in BLOCKED:
        order = "h w p q" if config.name == "nested_raster" else "p q h w"
        block = {"p": config.block, "q": config.block}
        return einops.rearrange(raster, f"(h p) (w q) -> ({order})", **block)
    if config.name == "spiral":
        return _spiral(raster)
    if config.name == "checkerboard":
        color = np.add.outer(np.arange(rows), np.arange(columns)) % 2
        return np.concatenate([raster[color == 0], raster[color == 1]])
    if config.name == "permutation":
        return np.random.default_rng(config.seed).permutation(rows * columns)
    raise ValueError(f"model.order.name={config.name!r} is drawn for each image")


def _spiral(raster: np.ndarray) -> Int[np.ndarray, " patch"]:
    """Takes the upper row and rotates the rest by a quarter to the left, until none is left."""
    rows = []
    while raster.size:
        rows.append(raster[0])
        raster = np.rot90(raster[1:])
    return np.concatenate(rows)


def draw_orders(config: OrderConfig, key: PRNGKeyArray | None, batch: int, grid: Grid) -> Order:
    """The fixed order, or for 'random' a uniform permutation for each image, drawn by `key`.

    Raises:
      ValueError: 'random' without a key, or blocks that do not divide the grid.
    """
    if config.name != "random":
        return fixed_order(config, grid)
    if key is None:
        raise ValueError("model.order.name='random' needs a key to draw orders with")
    keys = jax.random.split(key, batch)
    return jax.vmap(lambda each: jax.random.permutation(each, math.prod(grid)))(keys)


def take(
    values: Shaped[Array, "*batch patch channel"] | Shaped[np.ndarray, "patch channel"],
    order: Order,
) -> Any:
    """Reorders values of patches from raster order to the order of the sequence."""
    if isinstance(order, np.ndarray) and np.array_equal(order, np.arange(len(order))):
        # A slice: sharded over devices, a gather would not be simplified by the compiler.
        return values[..., : len(order), :]
    if order.ndim == 1:
        return values[..., order, :]
    if values.ndim == 2:
        return jnp.asarray(values)[order]
    return jnp.take_along_axis(jnp.asarray(values), order[..., None], axis=1)


def inverse(order: Order) -> Order:
    """Position in the sequence of each patch, by raster number.

    `take(take(values, order), inverse(order))` is `values`.
    """
    return np.argsort(order) if isinstance(order, np.ndarray) else jnp.argsort(order, axis=-1)
