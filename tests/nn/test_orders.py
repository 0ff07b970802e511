"""Orders against grids that were filled in by hand."""

import jax
import numpy as np
import pytest

from darl_jax.nn.orders import FIXED, OrderConfig, draw_orders, fixed_order, inverse, take


def place_of(name: str, grid: tuple[int, int], **settings: int) -> list[list[int]]:
    """At which place of the sequence each patch stands."""
    order = fixed_order(OrderConfig(name, **settings), grid)
    return inverse(order).reshape(grid).tolist()


def test_the_papers_orders_on_a_grid_of_4_by_4():
    """Figures 11 and 13, with blocks of 2 x 2."""
    assert place_of("nested_raster", (4, 4)) == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert place_of("round_robin", (4, 4)) == [
        [0, 4, 1, 5],
        [8, 12, 9, 13],
        [2, 6, 3, 7],
        [10, 14, 11, 15],
    ]


def test_orders_on_a_grid_that_is_not_square():
    assert place_of("raster", (2, 3)) == [[0, 1, 2], [3, 4, 5]]
    assert place_of("spiral", (3, 4)) == [[0, 1, 2, 3], [9, 10, 11, 4], [8, 7, 6, 5]]
    assert place_of("checkerboard", (2, 4)) == [[0, 4, 1, 5], [6, 2, 7, 3]]
    assert place_of("nested_raster", (2, 4)) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert place_of("round_robin", (2, 4)) == [[0, 2, 1, 3], [4, 6, 5, 7]]


@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (1, 5), (8, 2)])
@pytest.mark.parametrize("name", FIXED)
def test_every_order_has_each_patch_once(name, grid):
    block = 1 if min(grid) == 1 else 2
    order = fixed_order(OrderConfig(name, block=block), grid)
    assert sorted(order.tolist()) == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("name", ["nested_raster", "round_robin"])
def test_blocks_of_one_patch_and_of_the_whole_grid_are_raster_order(name):
    for block in (1, 4):
        assert fixed_order(OrderConfig(name, block), (4, 4)).tolist() == list(range(16))


@pytest.mark.parametrize("name", ["nested_raster", "round_robin"])
def test_a_block_that_does_not_divide_the_grid_is_an_error(name):
    with pytest.raises(ValueError, match=r"model.order.block=3 must divide the grid of 6 x 4"):
        fixed_order(OrderConfig(name, 3), (6, 4))


def test_a_permutation_is_its_seeds():
    first, again, other = (
        fixed_order(OrderConfig("permutation", seed=seed), (4, 4)).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_random_orders_are_uniform_and_one_for_each_image():
    """All 24 permutations of four patches, each about as often."""
    orders = np.asarray(draw_orders(OrderConfig("random"), jax.random.key(0), 4800, (2, 2)))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    # Chi-squared with 23 degrees of freedom is below 49.7 in 999 of 1000 cases.
    assert ((counts - 200) ** 2 / 200).sum() < 49.7
    with pytest.raises(ValueError, match="needs a key to draw orders with"):
        draw_orders(OrderConfig("random"), None, 2, (2, 2))


def test_taking_in_an_order_and_in_its_inverse_changes_nothing():
    values = jax.random.normal(jax.random.key(1), (3, 6, 2))
    each = draw_orders(OrderConfig("random"), jax.random.key(0), 3, (2, 3))
    for order in (fixed_order(OrderConfig("spiral"), (2, 3)), each):
        there = take(values, order)
        np.testing.assert_array_equal(take(there, inverse(order)), values)
    for image, order in enumerate(np.asarray(each)):
        np.testing.assert_array_equal(there[image], np.asarray(values)[image, order])
    table = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(take(table, each)[1], table[np.asarray(each)[1]])
