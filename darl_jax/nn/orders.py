"""In which order a model reads and predicts the patches of an image (Section 4.4, Appendix A.5).

An order is a permutation: entry i is the raster number of the patch that stands at place i of the
sequence.
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

Order = Int[np.ndarray, " place"] | Int[Array, "batch place"]  # one for all images, or one for each

BLOCKED = ("nested_raster", "round_robin")
FIXED = ("raster", *BLOCKED, "spiral", "checkerboard", "permutation")
ORDERS = (*FIXED, "random")


@dataclasses.dataclass(frozen=True)
class OrderConfig:
    """Which order.

    Attributes:
      name: 'raster'; 'nested_raster', block after block, each in raster order; 'round_robin', the
        first patch of each block, then the second of each, and so on; 'spiral', from the upper left
        corner clockwise inwards; 'checkerboard', the fields of one color and then the others;
        'permutation', drawn once; 'random', drawn for each image anew, which needs two streams.
      block: rows and columns of patches in a block; read by 'nested_raster' and 'round_robin'.
      seed: of 'permutation'.
    """

    name: str = "raster"
    block: int = 2
    seed: int = 0

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
    """The order that all images have.

    Raises:
      ValueError: it is another one for each image, or its blocks do not divide the grid.
    """
    config.check(grid)
    rows, columns = grid
    raster = np.arange(rows * columns).reshape(grid)
    if config.name == "raster":
        return raster.ravel()
    if config.name == "nested_raster":
        return einops.rearrange(raster, "(h p) (w q) -> (h w p q)", p=config.block, q=config.block)
    if config.name == "round_robin":
        return einops.rearrange(raster, "(h p) (w q) -> (p q h w)", p=config.block, q=config.block)
    if config.name == "spiral":
        return _spiral(raster)
    if config.name == "checkerboard":
        color = np.add.outer(np.arange(rows), np.arange(columns)) % 2
        return np.concatenate([raster[color == 0], raster[color == 1]])
    if config.name == "permutation":
        return np.random.default_rng(config.seed).permutation(rows * columns)
    raise ValueError(f"model.order.name={config.name!r} is no order that all images have")


def _spiral(raster: np.ndarray) -> Int[np.ndarray, " patch"]:
    """Peels off the upper row and turns the rest by a quarter to the left, while there is one."""
    rows = []
    while raster.size:
        rows.append(raster[0])
        raster = np.rot90(raster[1:])
    return np.concatenate(rows)


def draw_orders(config: OrderConfig, key: PRNGKeyArray | None, batch: int, grid: Grid) -> Order:
    """The fixed order, or a permutation for each image, uniform over all of them.

    Args:
      config: which order.
      key: draws the permutations; read by 'random' alone.
      batch: number of images.
      grid: (rows, columns) of their patches.

    Raises:
      ValueError: an order is to be drawn and there is no key.
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
    """`values` of patches in raster order as they stand in the sequence.

    Args:
      values: of the patches of one image, or of a batch of them.
      order: which patch stands where, for all images or for each.
    """
    if isinstance(order, np.ndarray) and np.array_equal(order, np.arange(len(order))):
        # A slice, which the compiler sees through where a gather is split over devices.
        return values[..., : len(order), :]
    if order.ndim == 1:
        return values[..., order, :]
    if values.ndim == 2:
        return jnp.asarray(values)[order]
    return jnp.take_along_axis(jnp.asarray(values), order[..., None], axis=1)


def inverse(order: Order) -> Order:
    """At which place of the sequence each patch stands, by raster number.

    `take(take(values, order), inverse(order))` is `values`.
    """
    return np.argsort(order) if isinstance(order, np.ndarray) else jnp.argsort(order, axis=-1)
