"""Signals end a program at once, and leave nothing half-written."""

import os
import signal
import threading
import time

import pytest

from darl_jax.runtime import signals
from tests.programs import finish, start

PROGRAM = """
import pathlib, sys, time
from darl_jax.runtime import cli, signals

def main():
    folder = pathlib.Path(sys.argv[0])
    with signals.unfinished(folder):
        folder.mkdir()
        # As compiled code does, this never returns to Python's handlers.
        import ctypes
        libc = ctypes.CDLL(None)
        print("ready", flush=True)
        while True:
            libc.pause()

sys.argv = sys.argv[1:]
cli.run(main, "usage")
"""


@pytest.mark.process
def test_ctrl_c_ends_a_program_in_compiled_code_with_130_and_removes_its_output(tmp_path):
    folder = tmp_path / "out"
    process = start("-c", PROGRAM, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert folder.is_dir()
    process.send_signal(signal.SIGINT)
    assert finish(process, 130)[1] == "interrupted by Ctrl-C\n"
    assert not folder.exists()


def test_folder_is_removed_where_writing_fails_and_stays_where_it_does_not(tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    with pytest.raises(FileExistsError), signals.unfinished(bad):
        bad.mkdir()
    assert not bad.exists()
    with signals.unfinished(tmp_path / "good"):
        (tmp_path / "good").mkdir()
    signals.discard_unfinished()
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_signal_is_noted_in_training_and_ends_the_process_before_it():
    left: list[tuple[int, str]] = []
    called = threading.Event()

    def leave(code: int, message: str) -> None:
        left.append((code, message))
        called.set()

    handler = signal.getsignal(signal.SIGTERM)
    with signals.StopRequest(leave) as stop:  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGTERM)
        assert called.wait(10)
        assert left == [(143, "SIGTERM before training began: nothing was changed")]
        left.clear()
        stop.begin_training()
        os.kill(os.getpid(), signal.SIGTERM)
        while stop.signal is None:
            time.sleep(0.01)
        assert (stop.signal, left) == ("SIGTERM", [])
        with stop.leaving_after(lambda: "all is saved"):
            assert left == [(75, "SIGTERM: all is saved")]
    assert signal.getsignal(signal.SIGTERM) is handler
