"""Figures that measure runs or read them: the numbers behind the pictures."""

import subprocess
import sys

import numpy as np
import pytest

from darl_jax.diffusion.schedules import Beta
from darl_jax.figures import errors, orders, schedule_sweep, schedules
from darl_jax.metrics import MetricWriter, read_metrics
from tests.tiny_runs import run, tiny


@pytest.fixture(scope="module")
def spiral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "spiral"
    config = tiny(model__patch_size=2, model__order__name="spiral", total_steps=4)
    assert run(config, folder) == 0
    return folder


def test_errors_are_the_validation_loss_by_place_and_by_patch(spiral):
    found = errors.measure(str(spiral), 500)
    loss = [line["validation/loss"] for line in read_metrics(spiral) if "validation/loss" in line]
    assert found.images == 500
    assert found.order == "spiral"
    assert found.in_image.mean() == pytest.approx(loss[-1], rel=1e-5)
    # The spiral of 4 x 4: along the upper row first, and in the end in the middle.
    np.testing.assert_allclose(found.in_sequence[:4], found.in_image[0])
    np.testing.assert_allclose(found.in_sequence[-2:], found.in_image[2, [2, 1]])
    figure = errors.errors_figure([found, found._replace(name="other")])
    assert [line.get_xydata()[:, 1].tolist() for line in figure.subfigs[0].axes[0].lines] == [
        found.in_sequence.tolist()
    ] * 2


def test_sweep_reads_the_schedule_and_the_last_value(tmp_path):
    config = tiny(objective="diffusion", total_steps=1, objective__schedule__a=0.3)
    assert run(config, tmp_path / "run") == 0
    writer = MetricWriter(tmp_path / "run", active=True)
    writer.scalars(1, {"probe/accuracy": 0.25})
    writer.close()
    point = schedule_sweep.read_point(str(tmp_path / "run"), "probe/accuracy")
    assert point == (0.3, 1.0, 0.25)
    with pytest.raises(ValueError, match=r"has no metric .accuracy.; it has .*probe/accuracy"):
        schedule_sweep.read_point(str(tmp_path / "run"), "accuracy")
    points = [point, schedule_sweep.Point(0.03, 1.0, 0.5), schedule_sweep.Point(1.0, 2.0, 0.4)]
    lines = schedule_sweep.sweep_figure(points, "probe/accuracy").axes[0].lines
    assert [line.get_xydata().tolist() for line in lines] == [
        [[0.03, 0.5], [0.3, 0.25]],
        [[1.0, 0.4]],
    ]


def test_a_run_of_the_squared_error_has_no_schedule(spiral):
    with pytest.raises(ValueError, match="was not trained by diffusion"):
        schedule_sweep.read_point(str(spiral), "validation/loss")


def test_shares_of_a_schedule_are_its_probabilities():
    for a in (0.03, 0.5, 1.0):
        edges = np.linspace(0, 1, 51)
        np.testing.assert_allclose(schedules.shares(Beta(a, 1.0)), np.diff(edges**a), atol=2e-5)
    panels = schedules.schedules_figure().axes
    assert [len(panel.lines) for panel in panels] == [len(schedules.BETAS), 5]


def test_each_order_has_a_panel_and_blocks_divide_the_grid():
    titles = [panel.get_title() for panel in orders.orders_figure(8).axes]
    assert titles[:8] == [
        "raster",
        "nested raster 2 x 2",
        "nested raster 4 x 4",
        "round-robin 2 x 2",
        "round-robin 4 x 4",
        "spiral",
        "checkerboard",
        "permutation",
    ]
    with pytest.raises(ValueError, match="--grid=1 must be at least 2"):
        orders.orders_figure(1)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("errors", [], "name one workdir or several"),
        ("errors", ["/no/such/run"], "/no/such/run"),
        ("schedule_sweep", ["/no/such/run"], "/no/such/run"),
    ],
)
def test_bad_input_is_one_line(program, arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", f"darl_jax.figures.{program}", *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
