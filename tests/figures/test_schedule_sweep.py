"""A run counts for the schedule that its backbone was trained by."""

import pytest

from darl_jax.figures import schedule_sweep
from darl_jax.figures.schedule_sweep import (
    Point,
    draw,
    read_point,
    schedule_of,
    sweep_figure,
    table,
)
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_params


def config(schedule=None, beginning="", objective="diffusion"):
    entries = {"name": objective}
    if schedule:
        entries["schedule"] = dict(zip(("name", "a", "b"), schedule, strict=True))
    return {"objective": entries, "init": {"checkpoint": beginning, "step": None}}


@pytest.fixture
def configs(monkeypatch):
    """Runs that are their configs alone."""
    runs = {
        "noise": config(("beta", 0.1, 10.0)),
        "tuned": config(None, "noise", "classification"),
        "probed": config(None, "tuned", "probes"),
        "noise_from_noise": config(("beta", 3.0, 1.0), "noise"),
        "squared": config(None, "", "mse"),
        "squared_tuned": config(None, "squared", "classification"),
        "cosine": config(("cosine", 0.03, 1.0)),
        "moved": config(None, "elsewhere", "classification"),
    }

    def restore(path, step=None):
        if path not in runs:
            raise FileNotFoundError(f"no checkpoints: there is no folder {path}")
        return runs[path]

    monkeypatch.setattr(schedule_sweep, "restore_config", restore)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("noise", (0.1, 10.0)),
        ("tuned", (0.1, 10.0)),
        ("probed", (0.1, 10.0)),
        ("noise_from_noise", (3.0, 1.0)),
    ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_had_one(configs, name, expected):
    assert schedule_of(name) == expected


def test_a_run_without_a_schedule_is_named(configs):
    with pytest.raises(ValueError, match=r"^squared was trained with objective\.name='mse'"):
        schedule_of("squared_tuned")
    with pytest.raises(ValueError, match=r"cosine was .*name='cosine', which has no a and b"):
        schedule_of("cosine")
    with pytest.raises(FileNotFoundError, match=r"moved began from elsewhere, .*no folder elsewh"):
        schedule_of("moved")


def test_a_run_on_disk_gives_its_schedule_and_its_last_value(tiny_diffusion, capsys):
    workdir = str(tiny_diffusion)
    assert schedule_sweep.restore_config(workdir) == restore_params(workdir)[1]
    point = read_point("run", workdir, "validation/loss")
    losses = [
        line["validation/loss"] for line in read_metrics(workdir) if "validation/loss" in line
    ]
    assert point == ("run", 0.3, 1.0, losses[-1])
    with pytest.raises(ValueError, match=r"has no metric 'accuracy'; there are: .*validation/"):
        read_point("run", workdir, "accuracy")
    axes = draw([workdir], metric="validation/loss").axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0.3, losses[-1]]]
    assert f"0.3   1   {losses[-1]:15.4f}   {tiny_diffusion.name}" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_run_by_a_and_b():
    points = [Point("late", 1.0, 1.0, 0.5), Point("early", 0.03, 10.0, 0.25)]
    assert table(points, "accuracy").splitlines() == [
        "   a    b   accuracy   run",
        "0.03   10     0.2500   early",
        "   1    1     0.5000   late",
    ]


def test_where_one_of_both_varies_there_is_a_line_over_it():
    over_a = [Point("x", 1.0, 1.0, 0.5), Point("y", 0.1, 1.0, 0.75), Point("z", 0.1, 1.0, 0.25)]
    axes = sweep_figure(over_a, "accuracy").axes[0]
    # Two runs of one schedule count by their mean.
    assert axes.lines[0].get_xydata().tolist() == [[0.1, 0.5], [1.0, 0.5]]
    assert axes.get_xscale() == "log"
    over_b = [Point("x", 1.0, 1.0, 0.5), Point("y", 1.0, 10.0, 0.75)]
    axes = sweep_figure(over_b, "accuracy").axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 0.5], [10.0, 0.75]]
    assert axes.get_xlabel().startswith("b of γ")
