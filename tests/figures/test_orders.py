"""The paths are the orders."""

import numpy as np
import pytest

from darl_jax.figures.orders import orders_figure


def test_colors_numbers_and_path_follow_the_order():
    panels = {panel.get_title(): panel for panel in orders_figure(3).axes}
    spiral = panels["spiral"]
    expected = np.array([[1, 2, 3], [8, 9, 4], [7, 6, 5]])
    np.testing.assert_array_equal(spiral.images[0].get_array(), expected)
    for text in spiral.texts:
        x, y = np.floor(np.add(text.get_position(), 0.5)).astype(int)
        assert text.get_text() == str(expected[y, x])
    assert len(spiral.texts) == 9
    jumps, steps = spiral.collections
    assert len(jumps.get_segments()) == 0
    path = np.array([segment[0] for segment in steps.get_segments()] + [[1, 1]]).astype(int)
    np.testing.assert_array_equal(expected[path[:, 1], path[:, 0]], np.arange(1, 10))
    # Raster: two jumps back to the left.
    jumps, steps = panels["raster"].collections
    assert [segment.tolist() for segment in jumps.get_segments()] == [
        [[2, 0], [0, 1]],
        [[2, 1], [0, 2]],
    ]
    assert len(steps.get_segments()) == 6


def test_a_grid_of_one_patch_has_no_order():
    with pytest.raises(ValueError, match="--grid=1 must be at least 2"):
        orders_figure(1)
