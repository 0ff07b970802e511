"""The terminal shows a true line."""

import io
import logging
import sys

import pytest
from absl import logging as absl_logging

from darl_jax.monitoring.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What a terminal shows: carriage returns and "erase to the end of the line" applied."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for piece in line.split("\r"):
                erased = "\x1b[K" in piece
                piece = piece.replace("\x1b[K", "")
                shown = piece if erased else piece + shown[len(piece) :]
            lines.append(shown)
        return lines


def open_terminal(monkeypatch) -> Terminal:
    # Not a fixture: pytest captures standard error anew between a fixture and its test.
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


def test_speed_and_eta_are_of_the_steps_that_this_process_did(capsys):
    clock = Clock()
    progress = Progress(1000, batch_size=64, start_step=900, plain_seconds=10.0, clock=clock)
    clock.now += 50  # compilation: in elapsed, not in the speed
    for step in range(901, 952):
        progress.update(step, 0.25)
        clock.now += 0.5
    lines = capsys.readouterr().err.splitlines()
    # 2 steps/s; at the first line there is nothing to measure yet.
    assert lines[0] == "step 901/1,000 (90.1%)  loss 0.2500  elapsed 0:00:50"
    assert lines[1] == (
        "step 921/1,000 (92.1%)  loss 0.2500  128.0 images/s  ETA 0:00:40  elapsed 0:01:00"
    )
    assert len(lines) == 3
    assert progress.images_per_second == pytest.approx(128)


def test_speed_is_the_recent_one():
    clock = Clock()
    progress = Progress(10_000, batch_size=10, clock=clock)
    step = 0
    for seconds_a_step, steps in ((1.0, 100), (0.1, 400)):
        for _ in range(steps):
            step += 1
            progress.update(step)
            clock.now += seconds_a_step
    assert progress.images_per_second == pytest.approx(100, rel=0.01)


def test_speed_of_steps_longer_than_the_window():
    clock = Clock()
    progress = Progress(10, batch_size=600, clock=clock)
    for step in (1, 2, 3):
        progress.update(step)
        clock.now += 60
    assert progress.images_per_second == pytest.approx(10)


def test_pauses_are_out_of_the_speed_and_in_the_eta(capsys):
    clock = Clock()
    progress = Progress(100, batch_size=8, plain_seconds=0.0, clock=clock)
    for step in range(1, 12):
        progress.update(step)
        clock.now += 1
        with progress.pause():
            clock.now += 3
    assert progress.images_per_second == pytest.approx(8)
    # 89 steps are left, of one second each and three of pause.
    assert "ETA 0:05:56" in capsys.readouterr().err.splitlines()[-1]


def test_an_error_in_a_pause_still_ends_it():
    clock = Clock()
    progress = Progress(100, batch_size=8, clock=clock)
    progress.update(1)

    def failing_evaluation():
        clock.now += 5
        raise KeyError

    with pytest.raises(KeyError), progress.pause():
        failing_evaluation()
    clock.now += 1
    progress.update(2)
    assert progress.images_per_second == pytest.approx(8)


def test_last_step_is_always_shown_once(capsys):
    clock = Clock()
    progress = Progress(5, batch_size=8, plain_seconds=1000.0, clock=clock)
    for step in range(1, 6):
        progress.update(step)
        clock.now += 1
    progress.close()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/5", "5/5"]

    stopped = Progress(5, batch_size=8, clock=clock)
    for step in (1, 2):
        stopped.update(step)
    stopped.close()
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/5", "2/5"]


def test_live_line_stays_one_line_and_fits_the_terminal(monkeypatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "40")
    clock = Clock()
    progress = Progress(1000, batch_size=8, clock=clock)
    for step in range(1, 100):
        progress.update(step, 1.5)
        clock.now += 0.125
    assert len(terminal.screen()) == 1
    assert terminal.screen()[0].startswith("step 99/1,000 (9.9%)  loss 1.5000")
    assert len(terminal.screen()[0]) < 40
    assert terminal.getvalue().count("\r") == 50  # every other step, no more often than 0.2 s
    progress.close()
    assert terminal.getvalue().endswith("\n")


def test_log_messages_do_not_mix_with_the_live_line(monkeypatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    clock = Clock()
    printing = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.root, "handlers", [printing])
    progress = Progress(1000, batch_size=8, clock=clock)
    progress.update(1, 2.0)
    absl_logging.error("something happened")
    clock.now += 1
    progress.update(2, 1.0)
    progress.close()
    absl_logging.error("afterwards")
    first, second, third, last = terminal.screen()
    assert first == "something happened"
    assert second.startswith("step 2/1,000")
    assert third == "afterwards"
    assert last == ""
    assert logging.root.handlers == [printing]


def test_inactive_progress_shows_nothing_and_still_measures(monkeypatch):
    terminal = open_terminal(monkeypatch)
    clock = Clock()
    progress = Progress(10, batch_size=8, active=False, clock=clock)
    progress.update(1)
    clock.now += 1
    progress.update(2)
    progress.close()
    assert terminal.getvalue() == ""
    assert progress.images_per_second == pytest.approx(8)
