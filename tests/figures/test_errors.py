"""The errors that are drawn are those that the runs' validation losses are means of."""

import dataclasses

import numpy as np
import pytest

from darl_jax.figures import errors
from darl_jax.figures.errors import Errors, draw, errors_figure, measure
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.sharding import MeshConfig
from tests.tiny_runs import run, tiny

SPIRAL = tiny(model__patch_size=2, model__order__name="spiral", total_steps=4)


@pytest.fixture(scope="module")
def spiral(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "spiral"
    assert run(SPIRAL, workdir) == 0
    return str(workdir)


@pytest.fixture(scope="module")
def measured(spiral):
    return measure("spiral", spiral, images=10**6)


def test_errors_are_the_validation_loss_by_place_and_by_patch(spiral, measured):
    losses = [line["validation/loss"] for line in read_metrics(spiral) if "validation/loss" in line]
    # Other batches than the run's; float32 sums in another order.
    assert measured.in_image.mean() == pytest.approx(losses[-1], rel=1e-5)
    assert measured.order == "spiral"
    # The spiral of 4 x 4: along the upper row first, and in the end in the middle.
    np.testing.assert_allclose(measured.in_sequence[:4], measured.in_image[0])
    np.testing.assert_allclose(measured.in_sequence[-2:], measured.in_image[2, [2, 1]])


def test_neither_what_the_run_evaluated_nor_its_devices_matter(spiral, measured, monkeypatch):
    other = dataclasses.replace(
        SPIRAL,
        evaluation=dataclasses.replace(SPIRAL.evaluation, loss_every_steps=0),
        mesh=MeshConfig(data=1, fsdp=64),
    )
    monkeypatch.setattr(errors, "read_config", lambda given, loaded: other)
    again = measure("spiral", spiral, images=10**6)
    np.testing.assert_array_equal(again.in_image, measured.in_image)


def test_a_run_that_learned_labels_is_named(spiral, monkeypatch):
    monkeypatch.setattr(
        errors, "read_config", lambda given, loaded: tiny(objective="classification")
    )
    with pytest.raises(ValueError, match=r"spiral was .*'classification', which predicts no patc"):
        measure("spiral", spiral, images=10)


def test_what_cannot_be_measured_is_named(tmp_path):
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
