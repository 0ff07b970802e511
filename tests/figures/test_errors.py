"""The errors that are drawn are those that the runs' validation losses are means of."""

import numpy as np
import pytest

from darl_jax.figures.errors import Errors, draw, errors_figure, measure
from darl_jax.monitoring.writers import read_metrics


@pytest.fixture(scope="module")
def measured(tiny_run):
    return measure("tiny", str(tiny_run), images=10**6)


def test_errors_are_the_validation_loss_by_place_and_by_patch(tiny_run, measured):
    history = read_metrics(tiny_run)
    losses = [line["validation/loss"] for line in history if "validation/loss" in line]
    # Other batches than the run's; float32 sums in another order.
    assert measured.in_image.mean() == pytest.approx(losses[-1], rel=1e-5)
    assert measured.order == "raster"
    np.testing.assert_array_equal(measured.in_sequence, measured.in_image.ravel())
    assert measured.in_image.shape == (2, 2)


def test_what_cannot_be_measured_is_named(fine_tuned, tmp_path):
    with pytest.raises(ValueError, match="'classification', which predicts no patches"):
        measure("fine_tuned", str(fine_tuned), images=10)
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint.*{tmp_path}"):
        draw([str(tmp_path)], images=10, data_dir=None)
    with pytest.raises(ValueError, match="--images=0 must be at least 1"):
        draw([str(tmp_path)], images=0, data_dir=None)


def test_lines_and_maps_hold_the_errors_on_one_scale():
    rng = np.random.default_rng(0)
    runs = [
        Errors(f"run{i}", f"order{i}", rng.random(side**2), (1 + i) * rng.random((side, side)), 7)
        for i, side in enumerate((2, 4, 4, 4, 3))
    ]
    upper, lower = errors_figure(runs).subfigs
    (line_axes,) = upper.axes
    assert line_axes.get_title() == "Mean over 7 validation images"
    for run_, line in zip(runs, line_axes.lines, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), run_.in_sequence)
        assert list(line.get_xdata()) == list(range(1, run_.in_sequence.size + 1))
    maps = [axes.images[0] for axes in lower.axes if axes.images]
    for run_, shown in zip(runs, maps, strict=True):
        np.testing.assert_array_equal(shown.get_array(), run_.in_image)
        assert shown.axes.get_title() == f"{run_.name}\n{run_.order}"
        assert shown.get_clim() == (0, max(run_.in_image.max() for run_ in runs))
