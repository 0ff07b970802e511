"""One run in a workdir at a time; a dead process keeps nobody out."""

import json
import os
import pathlib
import threading

import psutil
import pytest
from etils import epath

from darl_jax.runtime import lock
from tests.programs import start


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.2)


def left_by(workdir: pathlib.Path, **changes) -> pathlib.Path:
    """A lock file as a process of this host leaves it, but for the changes."""
    path = workdir / lock.FILE
    path.write_text(json.dumps(lock._me() | changes))
    return path


def test_second_run_is_refused_with_host_and_pid_of_the_first(tmp_path):
    folder = epath.Path(tmp_path)
    refused = pytest.raises(lock.RunningError, match=f"in use by process {os.getpid()} on ")
    with lock.held(folder), refused:
        lock.held(folder).__enter__()
    with lock.held(folder):  # The first has left.
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_dead_process_of_this_host_keeps_nobody_out(tmp_path, short_waits):
    sleeper = start("-c", "import time; time.sleep(60)")
    started = psutil.Process(sleeper.pid).create_time()
    left_by(tmp_path, pid=sleeper.pid, started=started)
    with pytest.raises(lock.RunningError, match=str(sleeper.pid)):
        lock.held(epath.Path(tmp_path)).__enter__()
    sleeper.kill()  # A zombie until it is waited for.
    psutil.wait_procs([psutil.Process(sleeper.pid)], timeout=0.5)
    with lock.held(epath.Path(tmp_path)):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()
    sleeper.wait()


@pytest.mark.parametrize("cut", [False, True])
def test_number_of_a_dead_process_that_is_used_again_and_a_cut_file_keep_nobody_out(
    tmp_path, short_waits, cut
):
    path = left_by(tmp_path, started=psutil.Process().create_time() - 100)
    if cut:
        path.write_text('{"host": "vm", "pi')
    with lock.held(epath.Path(tmp_path)):
        assert json.loads((tmp_path / lock.FILE).read_text())["pid"] == os.getpid()


def test_other_host_counts_while_its_file_changes(tmp_path, short_waits):
    path = left_by(tmp_path, host="elsewhere", key="other")
    with lock.held(epath.Path(tmp_path)):  # It does not change.
        pass
    left_by(tmp_path, host="elsewhere", key="other")
    stop = threading.Event()
    beat = threading.Thread(
        target=lock._beat, args=(epath.Path(path), json.loads(path.read_text()), stop)
    )
    beat.start()
    with pytest.raises(lock.RunningError, match="on elsewhere"):
        lock.held(epath.Path(tmp_path)).__enter__()
    stop.set()
    beat.join()


def test_of_two_that_take_over_one_file_one_wins(tmp_path, short_waits):
    left_by(tmp_path, pid=2**22 + 1)
    results: list[str] = []
    both = threading.Barrier(2)

    def take() -> None:
        both.wait()
        try:
            with lock.held(epath.Path(tmp_path)):
                results.append("held")
                both.wait()
        except lock.RunningError:
            results.append("refused")
            both.wait()

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused"]
