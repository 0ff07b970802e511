"""Every second of a run is in one category, over all attempts."""

import contextlib
import random
import time

import psutil
import pytest

from darl_jax.monitoring.clock import CATEGORIES, Clock, history_until
from darl_jax.monitoring.writers import MetricWriter


class Time:
    """Time that moves by assignment."""

    def __init__(self, now: float = 1e9):
        self.now = now

    def __call__(self) -> float:
        return self.now

    def spend(self, clock: Clock, category: str, seconds: float) -> None:
        with clock(category):
            self.now += seconds


def seconds(values) -> dict[str, float]:
    return {c: values[f"goodput/{c}_seconds"] for c in CATEGORIES}


def line(step: int, now: Time, clock: Clock, **summary) -> dict[str, float]:
    return {"step": step, "time": now.now, **clock.summary(**summary)}


def training_attempt(now: Time, history=(), productive=100.0) -> Clock:
    """10 s of start-up, 20 s of compilation, 5 s for the first batch, then training."""
    clock = Clock(history, created=now.now, now=now)
    now.now += 10
    now.spend(clock, "compile", 20)
    now.spend(clock, "input", 5)
    now.now += productive
    return clock


def test_startup_lasts_until_the_first_batch_and_the_rest_of_the_loop_is_productive():
    now = Time()
    clock = training_attempt(now)
    now.spend(clock, "input", 7)
    now.spend(clock, "device", 30)
    now.spend(clock, "checkpoint", 3)
    now.spend(clock, "evaluation", 4)
    now.now += 1
    values = clock.summary()
    assert seconds(values) == {
        "productive": 131,
        "input": 7,
        "evaluation": 4,
        "checkpoint": 3,
        "compile": 20,
        "startup": 15,
        "lost": 0,
    }
    assert values["goodput/share"] == pytest.approx(131 / 180)
    assert values["goodput/attempt"] == 1


def test_inner_time_does_not_count_for_the_outer_and_failing_time_counts():
    now = Time()
    clock = training_attempt(now, productive=0)
    with contextlib.suppress(RuntimeError), clock("evaluation"):
        now.now += 1
        now.spend(clock, "compile", 10)
        now.now += 100
        raise RuntimeError
    now.now += 2
    found = seconds(clock.summary())
    assert (found["evaluation"], found["compile"], found["productive"]) == (101, 30, 2)


def test_categories_sum_to_the_wall_time_over_any_attempts():
    draw = random.Random(0)
    now, history = Time(), []
    for _ in range(12):
        clock = training_attempt(now, history, productive=draw.uniform(0, 50))
        for step in range(1, draw.randrange(2, 20)):
            now.spend(clock, draw.choice(["input", "device", "checkpoint"]), draw.random())
            now.now += draw.random()
            history.append(line(step, now, clock))
        now.now += draw.uniform(0, 30)  # Steps after the last line, and nothing at all.
        history = history[: len(history) - draw.randrange(3)] or history[:1]
    wall = history[-1]["time"] - 1e9
    assert sum(seconds(history[-1]).values()) == pytest.approx(wall, rel=1e-9)
    assert history[-1]["goodput/attempt"] > 1


def test_redone_steps_and_the_time_between_attempts_are_lost(tmp_path):
    now = Time()
    first = training_attempt(now)
    history = [line(10, now, first)]  # Saved here.
    now.now += 60  # Steps 11 to 16, killed without a checkpoint.
    superseded = line(16, now, first)
    now.now += 300  # Nobody starts it.
    second = training_attempt(now, history)
    found = seconds(second.summary())
    assert found["lost"] == 360
    assert (found["productive"], found["startup"], found["compile"]) == (200, 30, 40)
    assert second.summary()["goodput/attempt"] == 2

    assert history_until(tmp_path, 0) == []
    # A workdir with both lines gives the same history as the one above.
    writer = MetricWriter(tmp_path)
    for written in (*history, superseded):
        numbers = {name: x for name, x in written.items() if name.startswith("goodput/")}
        writer.scalars(int(written["step"]), numbers)
    writer.close()
    (kept,) = history_until(tmp_path, 10)
    assert seconds(kept) == seconds(history[0])


def test_time_between_a_finished_run_and_its_extension_is_not_lost():
    now = Time()
    history = [line(10, now, training_attempt(now), finished=True)]
    now.now += 1e6
    extended = training_attempt(now, history)
    assert seconds(extended.summary())["lost"] == 0
    assert "goodput/finished" not in extended.summary()


def test_clocks_that_are_behind_take_no_time_away():
    now = Time()
    history = [line(10, now, training_attempt(now)), {"step": 10, "time": now.now + 3}]
    other = Time(now.now - 5000)  # The next machine's.
    second = training_attempt(other, history)
    assert seconds(second.summary())["lost"] == 0
    other.now -= 70  # Set back while it runs.
    assert seconds(second.summary())["productive"] == 200
    other.now += 5
    assert seconds(second.summary())["productive"] == 205


def test_window_has_the_parts_of_the_loop_since_the_last_one():
    now = Time()
    clock = training_attempt(now, [line(1, now, training_attempt(now))])
    assert list(clock.window()) == [0, 100, 0]
    now.spend(clock, "input", 2)
    now.spend(clock, "device", 3)
    now.spend(clock, "evaluation", 50)
    now.now += 4
    assert list(clock.window()) == [2, 4, 3]
    assert list(clock.window()) == [0, 0, 0]


def test_startup_counts_from_the_creation_of_the_process():
    before = time.time() - psutil.Process().create_time()
    startup = seconds(Clock().summary())["startup"]
    assert before <= startup < before + 5
