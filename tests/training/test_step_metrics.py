"""Metrics are read two steps late, and a run of dropped updates ends training."""

import jax.numpy as jnp
import pytest
from clu.metrics import Average

from darl_jax.training.step_metrics import NotFiniteError, StepMetrics


def metrics(loss: float, *, dropped_in_a_row: int = 0, decile_count: int = 1, stop: int = 0):
    def average(total, count=1):
        return Average(total=jnp.float32(total), count=jnp.float32(count))

    return {
        "loss": average(loss),
        "decile": average(3.0 * decile_count, decile_count),
        "dropped_updates": average(dropped_in_a_row),
        "dropped_in_a_row": average(dropped_in_a_row),
        "stop_requested": average(stop),
    }


def test_steps_are_read_two_steps_later_and_all_by_wait():
    read = StepMetrics(3)
    losses = []
    for step in range(1, 5):
        read.add(step, metrics(step, stop=step == 2))
        losses.append(read.loss)
    assert losses == [None, None, 1, 2]
    assert read.stop_requested
    read.wait()
    assert read.loss == 4


def test_summary_averages_finite_values_since_the_last_one():
    read = StepMetrics(3)
    for step, loss in enumerate((1.0, float("nan"), 4.0), start=1):
        read.add(step, metrics(loss, decile_count=2 if step == 1 else 0))
    read.wait()
    counters = {"dropped_updates": 0.0, "dropped_in_a_row": 0.0}
    assert read.summary() == {"loss": 2.5, "decile": 3.0} | counters
    read.add(4, metrics(7.0, decile_count=0))
    read.wait()
    assert read.summary() == {"loss": 7.0} | counters


def test_error_names_the_steps_whose_updates_were_dropped():
    read = StepMetrics(3)
    for step in range(1, 8):
        read.add(step, metrics(1.0, dropped_in_a_row=max(0, step - 4)))
    with pytest.raises(NotFiniteError, match="in 3 steps in a row, 5 to 7;"):
        read.wait()
