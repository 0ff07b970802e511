"""The live line stays one line, and gives way to everything else on the terminal."""

import io
import logging
import os
import sys
import termios
import time

import pytest

from darl_jax.monitoring.progress import Progress

_REDRAWN_AFTER = 0.25


class Terminal(io.StringIO):
    """Keeps the text, and has the size of a real terminal."""

    def __init__(self, columns: int):
        super().__init__()
        _, self._device = os.openpty()
        termios.tcsetwinsize(self._device, (25, columns))

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._device

    def screen(self) -> list[str]:
        """Lines of a terminal: text after a carriage return is written over the line."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for piece in line.split("\r"):
                shown = piece + shown[len(piece) :]
            lines.append(shown.rstrip())
        return lines


@pytest.fixture
def open_terminal(monkeypatch):
    # Called in the test: pytest captures standard error anew between a fixture and its test.
    def open_(columns: int = 100) -> Terminal:
        terminal = Terminal(columns)
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return open_


def test_line_has_count_share_and_note_and_fits_the_terminal(open_terminal):
    terminal = open_terminal(columns=64)
    progress = Progress(2000, start=800)
    for step in range(801, 811):
        time.sleep(_REDRAWN_AFTER if step == 810 else 0)
        progress.update(step, "loss 0.2330")
    (line,) = terminal.screen()
    assert line.startswith("step 810/2,000 (40.5%), loss 0.2330  ")
    assert len(line) < 64
    progress.close()
    assert terminal.screen() == [""]
    assert sys.stderr is terminal


@pytest.mark.parametrize("closed_first", [False, True])
def test_error_stands_last_and_alone(open_terminal, closed_first):
    terminal = open_terminal()
    progress = Progress(10)
    time.sleep(_REDRAWN_AFTER)
    progress.update(6, "loss 0.5")
    assert terminal.screen()[0].startswith("step 6/10")
    if closed_first:
        progress.close()
    print("error: no space left", file=sys.stderr)
    progress.close()
    assert terminal.screen() == ["error: no space left", ""]


def test_log_messages_do_not_mix_with_the_line(open_terminal, monkeypatch):
    terminal = open_terminal()
    printing = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.root, "handlers", [printing])
    progress = Progress(10)
    progress.update(6)
    logging.warning("something happened")
    assert terminal.screen() == ["something happened", ""]
    time.sleep(_REDRAWN_AFTER)
    progress.update(7)
    assert terminal.screen()[1].startswith("step 7/10")
    progress.close()
    assert logging.root.handlers == [printing]


def test_nothing_is_shown_without_a_terminal_or_by_other_processes(open_terminal, capsys):
    for active in (True, False):
        if not active:
            terminal = open_terminal()
        progress = Progress(10, active=active)
        progress.update(5)
        progress.close()
    assert capsys.readouterr().err == ""
    assert terminal.getvalue() == ""
