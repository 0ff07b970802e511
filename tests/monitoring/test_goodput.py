"""Every second of a run is in one category, over all attempts; the picture shows these numbers."""

import contextlib
import importlib.util
import random
import subprocess
import sys
import time

import matplotlib.colors
import numpy as np
import psutil
import pytest

from darl_jax.monitoring import goodput as goodput_module
from darl_jax.monitoring.goodput import (
    CATEGORIES,
    Goodput,
    goodput_figure,
    history_until,
    table,
    timeline,
)
from darl_jax.monitoring.writers import MetricWriter, read_metrics


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, now: float = 1e9):
        self.now = now

    def __call__(self) -> float:
        return self.now

    def spend(self, goodput: Goodput, category: str, seconds: float) -> None:
        with goodput.spent(category):
            self.now += seconds


def seconds(values) -> dict[str, float]:
    return {c: values[f"goodput/{c}_seconds"] for c in CATEGORIES}


def line(step: int, clock: Clock, goodput: Goodput, **summary) -> dict[str, float]:
    return {"step": step, "time": clock.now, **goodput.summary(**summary)}


def training_attempt(clock: Clock, history=(), productive=100.0) -> Goodput:
    """10 s of start-up, 20 s of compilation, 5 s for the first batch, then training."""
    goodput = Goodput(history, created=clock.now, clock=clock)
    clock.now += 10
    clock.spend(goodput, "compile", 20)
    clock.spend(goodput, "input", 5)
    clock.now += productive
    return goodput


def test_startup_lasts_until_the_first_batch_and_the_rest_of_the_loop_is_productive():
    clock = Clock()
    goodput = training_attempt(clock)
    clock.spend(goodput, "input", 7)
    clock.spend(goodput, "device", 30)
    clock.spend(goodput, "checkpoint", 3)
    clock.spend(goodput, "evaluation", 4)
    clock.now += 1
    values = goodput.summary()
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


def test_inner_time_does_not_count_for_the_outer():
    clock = Clock()
    goodput = training_attempt(clock, productive=0)
    with goodput.spent("evaluation"):
        clock.now += 1
        with goodput.spent("compile"):
            clock.now += 10
        clock.now += 100
    found = seconds(goodput.summary())
    assert (found["evaluation"], found["compile"], found["productive"]) == (101, 30, 0)


def test_time_is_counted_when_what_is_inside_fails():
    clock = Clock()
    goodput = training_attempt(clock, productive=0)
    with contextlib.suppress(RuntimeError), goodput.spent("checkpoint"):
        clock.now += 9
        raise RuntimeError
    clock.now += 2
    found = seconds(goodput.summary())
    assert (found["checkpoint"], found["productive"]) == (9, 2)


def test_unknown_category_is_named():
    with pytest.raises(ValueError, match="'inptu'; choose from"), Goodput().spent("inptu"):
        pass


@pytest.mark.parametrize("seed", range(3))
def test_categories_sum_to_the_wall_time_over_any_attempts(seed):
    draw = random.Random(seed)
    clock, history = Clock(), []
    for _ in range(6):
        goodput = training_attempt(clock, history, productive=draw.uniform(0, 50))
        for step in range(1, draw.randrange(2, 20)):
            clock.spend(goodput, draw.choice(["input", "device", "checkpoint"]), draw.random())
            clock.now += draw.random()
            history.append(line(step, clock, goodput))
        clock.now += draw.uniform(0, 30)  # Steps after the last line, and nothing at all.
        history = history[: len(history) - draw.randrange(3)] or history[:1]
    wall = history[-1]["time"] - 1e9
    assert sum(seconds(history[-1]).values()) == pytest.approx(wall, rel=1e-9)
    assert history[-1]["goodput/attempt"] > 1


def test_redone_steps_and_the_time_between_attempts_are_lost(tmp_path):
    clock = Clock()
    first = training_attempt(clock)
    history = [line(10, clock, first)]  # Saved here.
    clock.now += 60  # Steps 11 to 16, killed without a checkpoint.
    superseded = line(16, clock, first)
    clock.now += 300  # Nobody starts it.
    second = training_attempt(clock, history)
    found = seconds(second.summary())
    assert found["lost"] == 360
    assert (found["productive"], found["startup"], found["compile"]) == (200, 30, 40)
    assert second.summary()["goodput/attempt"] == 2

    # A workdir with both lines gives the same history as the one above.
    writer = MetricWriter(tmp_path)
    for written in (*history, superseded):
        numbers = {name: x for name, x in written.items() if name.startswith("goodput/")}
        writer.scalars(int(written["step"]), numbers)
    writer.close()
    (kept,) = history_until(tmp_path, 10)
    assert seconds(kept) == seconds(history[0])


def test_run_without_metrics_has_no_history(tmp_path):
    assert history_until(tmp_path, 0) == []


def test_attempt_killed_before_its_first_step_ended_keeps_its_start_and_compilation():
    clock = Clock()
    first = Goodput(created=clock.now, clock=clock)
    clock.now += 10
    clock.spend(first, "compile", 20)
    history = [line(0, clock, first)]  # What the program writes as the loop begins.
    clock.now += 8
    second = Goodput(history, created=clock.now, clock=clock)
    found = seconds(second.summary())
    assert (found["startup"], found["compile"], found["lost"]) == (10, 20, 8)


def test_time_between_a_finished_run_and_its_extension_is_not_lost():
    clock = Clock()
    history = [line(10, clock, training_attempt(clock), finished=True)]
    clock.now += 1e6
    extended = training_attempt(clock, history)
    assert seconds(extended.summary())["lost"] == 0
    assert "goodput/finished" not in extended.summary()


def test_clocks_that_are_behind_take_no_time_away():
    clock = Clock()
    history = [line(10, clock, training_attempt(clock))]
    other = Clock(clock.now - 5000)  # The next machine's.
    second = training_attempt(other, history)
    assert seconds(second.summary())["lost"] == 0
    other.now -= 70  # Set back while it runs.
    assert seconds(second.summary())["productive"] == 200
    other.now += 5
    assert seconds(second.summary())["productive"] == 205


def test_lines_without_goodput_are_passed_over():
    clock = Clock()
    history = [line(10, clock, training_attempt(clock)), {"step": 10, "time": clock.now + 3}]
    clock.now += 5
    assert seconds(training_attempt(clock, history).summary())["lost"] == 5


def test_window_has_what_the_loop_waited_for_since_the_last_one():
    clock = Clock()
    goodput = training_attempt(clock, [line(1, clock, training_attempt(clock))])
    assert list(goodput.window()) == [0, 100, 0]
    clock.spend(goodput, "input", 2)
    clock.spend(goodput, "device", 3)
    clock.spend(goodput, "evaluation", 50)
    clock.now += 4
    assert list(goodput.window()) == [2, 4, 3]
    assert list(goodput.window()) == [0, 0, 0]


def test_startup_counts_from_the_creation_of_the_process():
    before = time.time() - psutil.Process().create_time()
    startup = seconds(Goodput().summary())["startup"]
    assert before <= startup < before + 5


def test_a_step_costs_no_more_than_a_few_empty_context_managers():
    """Of the thread's own time, beside others on the machine; without the checks of shapes."""
    spec = importlib.util.spec_from_file_location("as_users_run_it", goodput_module.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    @contextlib.contextmanager
    def nothing(category):
        yield

    def cost(spent):
        began = time.thread_time()
        for _ in range(200):
            with spent("input"):
                pass
        return time.thread_time() - began

    pairs = [(cost(module.Goodput().spent), cost(nothing)) for _ in range(20)]
    ours, empty = (min(each) for each in zip(*pairs, strict=True))
    # 1.4 times; one question to the operating system costs as much as 15.
    assert ours < 5 * empty


def two_attempts() -> list[dict]:
    clock = Clock()
    first = training_attempt(clock)
    history = [line(10, clock, first), line(20, clock, first)]
    clock.now += 200
    second = training_attempt(clock, history)
    history.append(line(20, clock, second))
    clock.spend(second, "evaluation", 65)
    return [*history, line(30, clock, second)]


def test_timeline_has_the_downtime_before_the_new_attempt():
    points, starts = timeline(two_attempts())
    assert starts == [335]
    assert list(points.sum(axis=1)) == [0, 135, 135, 335, 470, 535]
    assert list(points[3] - points[2]) == [0, 0, 0, 0, 0, 0, 200]


def test_table_has_each_category_and_the_attempts():
    text = table("digits", two_attempts())
    assert "digits: 2 attempts, 0:08:55" in text
    assert "productive  37.4% 0:03:20" in text
    assert "lost        37.4% 0:03:20" in text
    assert "evaluation  12.1% 0:01:05" in text


@pytest.mark.parametrize("copies", [1, 200], ids=["few lines", "many lines"])
def test_areas_of_the_picture_are_the_seconds_of_the_categories(copies):
    history = two_attempts()
    last = history[-1]
    for i in range(copies - 1):  # Ever longer training.
        later = dict(last)
        later["goodput/productive_seconds"] += 10.0 * (i + 1)
        history.append(later)
    bars = goodput_figure("digits", history).axes[1].patches
    assert len(bars) <= 150 * len(CATEGORIES)
    colors = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars]
    areas = dict.fromkeys(colors, 0.0)
    for color, bar in zip(colors, bars, strict=True):
        areas[color] += bar.get_width() * bar.get_height()
    total = sum(areas.values())
    wanted = seconds(history[-1])
    wall = sum(wanted.values())
    # The bars are drawn category by category, in their order.
    found = dict(zip(CATEGORIES, dict.fromkeys(colors), strict=True))
    for category, color in found.items():
        assert areas[color] / total == pytest.approx(wanted[category] / wall, abs=1e-6)
    # Stacked: the last category ends at the top of each column.
    tops = [bar.get_y() + bar.get_height() for bar in bars[-len(bars) // len(CATEGORIES) :]]
    np.testing.assert_allclose(tops, 1)


def test_command_prints_the_table_and_writes_the_picture(tmp_path):
    writer = MetricWriter(tmp_path)
    goodput = Goodput()
    with goodput.spent("input"):
        pass
    time.sleep(0.01)
    writer.scalars(1, goodput.summary())
    writer.close()
    picture = tmp_path / "goodput.png"
    command = [sys.executable, "-m", "darl_jax.monitoring.goodput"]
    done = subprocess.run(
        [*command, str(tmp_path), f"--output={picture}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert table(tmp_path.name, read_metrics(tmp_path)) in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_history_without_goodput_is_an_error():
    with pytest.raises(ValueError, match="no goodput"):
        table("old", [{"step": 1, "time": 0.0, "train/loss": 1.0}])
