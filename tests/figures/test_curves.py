"""The curves are the numbers that the run wrote."""

import pytest

from darl_jax.figures.curves import loss_figure
from darl_jax.monitoring.writers import MetricWriter, read_metrics


def test_curves_hold_the_written_losses_and_superseded_ones_are_gone(tmp_path):
    first = MetricWriter(tmp_path)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0)):
        first.scalars(step, {"train/loss": loss})
    first.close()
    second = MetricWriter(tmp_path, purge_step=3)
    second.scalars(3, {"train/loss": 1.0, "validation/loss": 1.5})
    second.close()

    axes = loss_figure({"run": read_metrics(tmp_path)}).axes[0]
    train, validation = axes.get_lines()
    assert [list(train.get_xdata()), list(train.get_ydata())] == [[1, 2, 3], [3.0, 2.0, 1.0]]
    assert [list(validation.get_xdata()), list(validation.get_ydata())] == [[3], [1.5]]


def test_run_without_losses_is_named():
    with pytest.raises(ValueError, match="empty: no losses"):
        loss_figure({"empty": []})
