"""Processes that fail and leave together: who ends, how soon, with which code and which words.

This file is also the program of those processes. They are forked from one that has imported JAX,
which is most of the time that a start takes.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from darl_jax.runtime import cli, cluster
from darl_jax.runtime.signals import StopRequest
from tests.programs import free_address

MOST_SECONDS = 15.0
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


# The program.


def break_down() -> None:
    raise KeyError("the first cause")


def refuse() -> None:
    cluster.fail_together(2, "error: the first cause")


def differ() -> None:
    with cli.one_line_errors(cli.EXIT_BAD_INPUT, ValueError):
        cluster.check_alike({"seed": jax.process_index()}, "keys of the config, or records,")


def interrupt_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


# (the process in which it happens, None for all; the fault)
FAULTS: dict[str, tuple[int | None, Callable[[], None]]] = {
    "exception in process 0": (0, break_down),
    "exception on a thread": (1, lambda: threading.Thread(target=break_down).start()),
    "exception in all": (None, break_down),
    "bad input in process 1": (1, refuse),
    "SIGTERM to process 1": (1, interrupt_self),
    "kill -9 of process 0": (0, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "kill -9 of process 1": (1, lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "stopped and saved": (None, lambda: sys.exit(75)),
    "another workdir": (None, lambda: None),
    "another config": (None, differ),
}


def run(name: str, index: int, address: str, folder: pathlib.Path) -> None:
    file = os.open(folder / f"{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.alarm(60)  # whatever a test finds, the program ends
    process, fault = FAULTS[name]
    with StopRequest(cluster.leave_together):
        cluster.join(address, 2, index)
        with cli.one_line_errors(cli.EXIT_BAD_INPUT, ValueError):
            other = f"{folder}-{index}" if name == "another workdir" else folder
            os.makedirs(other, exist_ok=True)
            cluster.share_failures(epath.Path(other))
        with cluster.failing_together():
            values = np.array([[index + 1 / 3, 1e300]])
            expected = np.array([[[1 / 3, 1e300]], [[4 / 3, 1e300]]])
            np.testing.assert_array_equal(cluster.gather(values), expected)
            assert cluster.agree_on(2**40 + index) == 2**40
            if process in (None, index):
                print(f"FAULT {time.time()}", flush=True)
                fault()
            while True:  # as training does
                cluster.gather(np.zeros(1))
                time.sleep(0.1)


def run_all(folder: pathlib.Path) -> None:
    """Runs each fault on two processes, and writes how each of them ended."""
    results: dict[str, Any] = {}
    for name in FAULTS:
        (folder / name).mkdir()
        address = free_address()
        pids: list[int] = []
        for index in range(2):
            pid = os.fork()
            if pid == 0:
                run(name, index, address, folder / name)
                return
            pids.append(pid)
        codes = [0, 0]
        for _ in pids:
            pid, status = os.wait()
            codes[pids.index(pid)] = os.waitstatus_to_exitcode(status)
        logs = [(folder / name / f"{index}.log").read_text() for index in range(2)]
        results[name] = {"codes": codes, "ended": time.time(), "logs": logs}
    (folder / "results.json").write_text(json.dumps(results))


# The tests.


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cluster")
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    subprocess.run(
        [sys.executable, __file__, str(folder)], check=True, timeout=200, env=environment
    )
    return json.loads((folder / "results.json").read_text())


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("exception in process 0", [1, 1]),
        ("exception on a thread", [1, 1]),
        ("exception in all", [1, 1]),
        ("bad input in process 1", [2, 2]),
        ("SIGTERM to process 1", [143, 143]),
        ("stopped and saved", [75, 75]),
    ],
)
def test_all_processes_end_within_seconds_with_the_code_of_the_first(results, name, codes):
    result = results[name]
    assert result["codes"] == codes, result["logs"]
    faults = [
        line.split()[1] for log in result["logs"] for line in log.split("\n") if "FAULT" in line
    ]
    assert result["ended"] - max(map(float, faults)) < MOST_SECONDS


@pytest.mark.process
@pytest.mark.parametrize("process", [0, 1])
def test_survivor_of_a_kill_ends_with_an_error_that_a_restart_may_mend(results, process):
    result = results[f"kill -9 of process {process}"]
    assert result["codes"][process] == -signal.SIGKILL
    # JAX's own client may be the first to notice, and aborts.
    assert result["codes"][1 - process] in (1, -signal.SIGABRT), result["logs"]


@pytest.mark.process
def test_survivor_tells_the_first_cause_in_one_line(results):
    for name, reason in [
        ("exception on a thread", "failed: KeyError: 'the first cause'"),
        ("bad input in process 1", "failed: error: the first cause"),
        ("SIGTERM to process 1", "does: SIGTERM before training began: nothing was changed"),
    ]:
        lines = [line for line in results[name]["logs"][0].splitlines() if "Gloo" not in line]
        assert lines == [f"process 0 ends as process 1 on {socket.gethostname()} {reason}"]
    assert "in break_down" in results["exception on a thread"]["logs"][1]
    # Simultaneous failure is reported once.
    logs = results["exception in all"]["logs"]
    assert sorted("Traceback" in log for log in logs) == [False, True]


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("another workdir", "processes [1] do not see process 0's --workdir="),
        ("another config", "processes [1] have other keys of the config, or records, than proc"),
    ],
)
def test_processes_that_would_wait_for_each_other_for_ever_are_refused(results, name, complaint):
    assert results[name]["codes"] == [2, 2]
    assert complaint in "".join(results[name]["logs"])


def test_process_that_is_alone_keeps_its_hooks(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    hooks = sys.excepthook, threading.excepthook
    # Said, not detected: JAX looks for others before its first computation only.
    cluster.join(None, 1, None)
    assert (sys.excepthook, threading.excepthook) == hooks
    cluster.fail_together(1, "of no consequence")
    with pytest.raises(KeyError), cluster.failing_together():
        break_down()
    np.testing.assert_array_equal(cluster.gather(np.arange(2.0)), [[0.0, 1.0]])


def test_settings_that_are_half_given_are_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID is not set"):
        cluster.join(None, None, None)


def test_settings_reach_jax_and_flags_come_before_variables(monkeypatch):
    calls: list[dict[str, Any]] = []

    def initialize(**settings: Any) -> None:
        calls.append(settings)
        raise RuntimeError("refused")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    for name, value in zip(VARIABLES, ("here:1", "3", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match=r"at there:2 .*refused"):
        cluster.join("there:2", 5, 0)
    with pytest.raises(ConnectionError, match="at here:1 "):
        cluster.join(None, None, None)
    read = [tuple(call[key] for key in ("coordinator_address", "num_processes", "process_id"))
            for call in calls]  # fmt: skip
    assert read == [("there:2", 5, 0), ("here:1", 3, 2)]


if __name__ == "__main__":
    run_all(pathlib.Path(sys.argv[1]))
