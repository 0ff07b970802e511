"""launch/processes.py: what it passes on, when it starts again, and that nobody is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import processes
from tests.programs import is_running

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]

# Each start adds its number to a file, and then runs the line that a test gives.
PROGRAM = """
import os, signal, sys, time
index = os.environ.get("JAX_PROCESS_ID", "0")
with open("starts", "a") as file:
    file.write(index)
attempt = open("starts").read().count(index)
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
def wait_for_signal(code):
    caught = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: caught.append(signal.Signals(number).name))
    print("ready", flush=True)
    while not caught:
        time.sleep(0.01)
    time.sleep(0.3)
    print(*caught, flush=True)
    sys.exit(code)
"""


@contextlib.contextmanager
def launch(
    folder: Path,
    body: str,
    *,
    copies: int = 2,
    restarts: int = 0,
    grace: float = 10.0,
    errors: int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, "-S", "-c", PROGRAM + body]
    script = (
        "import signal, sys\n"
        # It would stay ignored where the tests themselves run under nohup.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from launch import processes\n"
        f"processes.GRACE_SECONDS = {grace}\n"
        "say = lambda line: print(line, file=sys.stderr, flush=True)\n"
        f"sys.exit(processes.supervise({program!r}, {copies}, {restarts}, say))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=errors,
    ) as launcher:
        try:
            yield launcher
        finally:
            launcher.kill()


def run(folder: Path, body: str, **options: float) -> tuple[int, str, str]:
    with launch(folder, body, **options) as launcher:  # type: ignore[arg-type]
        output, errors = launcher.communicate(timeout=120)
        return launcher.returncode, output, errors


def starts(folder: Path) -> str:
    return "".join(sorted((folder / "starts").read_text()))


def wait_until_ready(launcher: subprocess.Popen[str], copies: int) -> None:
    assert launcher.stdout is not None
    for _ in range(copies):
        assert "ready" in launcher.stdout.readline()


def test_all_start_again_after_a_crash_until_they_finish(tmp_path):
    code, _, errors = run(
        tmp_path, "sys.exit(1 if attempt == 1 and index == '1' else 0)", restarts=3
    )
    assert code == 0
    assert starts(tmp_path) == "0011"
    assert "process 1 ended with exit code 1" in errors
    assert "restart 1 of 3" in errors
    assert len(errors.splitlines()) == 1


def test_it_gives_up_after_so_many_restarts(tmp_path):
    code, _, errors = run(tmp_path, "sys.exit(75)", copies=1, restarts=2)
    assert code == 75
    assert starts(tmp_path) == "000"
    assert errors.splitlines()[-1].endswith("gives up after 2 restarts")


@pytest.mark.parametrize("final", [0, 2])
def test_what_a_restart_would_not_change_is_final(tmp_path, final):
    code, _, errors = run(tmp_path, f"sys.exit({final})", restarts=3)
    assert code == final
    assert starts(tmp_path) == "01"
    assert ("it is not started again" in errors) == (final != 0)


def test_the_first_failure_gives_the_code_and_the_rest_is_killed(tmp_path):
    began = time.monotonic()
    body = "time.sleep(60 if index == '0' else 0.1); sys.exit(7)"
    code, _, errors = run(tmp_path, body, grace=0.3)
    assert code == 7
    assert time.monotonic() - began < 10
    assert "process 1 ended with exit code 7" in errors


def test_a_killed_process_is_named_even_if_another_one_ended_at_the_same_time(tmp_path):
    dying = str(tmp_path / "dying")  # process 0 may have started long before
    body = (
        "if index == '1':\n"
        f"    open({dying!r}, 'w').close(); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"while not os.path.exists({dying!r}):\n"
        "    time.sleep(0.001)\n"
        "time.sleep(0.02); sys.exit(1)"
    )
    code, _, errors = run(tmp_path, body)
    assert code == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL" in errors


@pytest.mark.parametrize(
    ("sent", "received"),
    [(signal.SIGINT, "SIGINT"), (signal.SIGHUP, "SIGTERM")],
)
def test_a_signal_reaches_each_process_once_and_ends_the_restarts(tmp_path, sent, received):
    with launch(tmp_path, "wait_for_signal(75)", restarts=3) as launcher:
        wait_until_ready(launcher, 2)
        launcher.send_signal(sent)
        output, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 75
    assert starts(tmp_path) == "01"
    assert sorted(output.splitlines()) == sorted([received, f"[1] {received}"])
    assert errors.startswith(f"{sent.name} ended the run: process ")


def test_nobody_outlives_a_killed_launcher(tmp_path):
    with launch(tmp_path, "wait_for_signal(0)", copies=3) as launcher:
        wait_until_ready(launcher, 3)
        launcher.kill()
        launcher.wait()
    pids = [int(line) for line in (tmp_path / "pids").read_text().splitlines()]
    assert len(pids) == 3
    give_up = time.monotonic() + 60
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_what_a_process_leaves_behind_is_killed(tmp_path):
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)"
    )
    code, output, _ = run(tmp_path, body, copies=1, restarts=1)
    assert code == 0
    assert not is_running(int(output))


def test_lines_of_all_but_process_0_begin_with_their_number(tmp_path):
    body = "print('out', index); print('err', index, end='', file=sys.stderr)"
    code, output, errors = run(tmp_path, body, copies=3)
    assert code == 0
    assert sorted(output.splitlines()) == ["[1] out 1", "[2] out 2", "out 0"]
    assert "err 0" in errors
    assert "[2] err 2\n" in errors


def test_on_a_terminal_other_lines_take_the_place_of_process_0s_live_line(tmp_path):
    ours, terminal = os.openpty()
    body = "time.sleep(0.3 * int(index)); print(sys.stderr.isatty(), file=sys.stderr, flush=True)"
    with launch(tmp_path, body, errors=terminal) as launcher:
        launcher.communicate(timeout=120)
    assert os.read(ours, 1000) == b"True\r\n\r\x1b[K[1] False\r\n"
    os.close(ours)
    os.close(terminal)


def test_processes_share_the_gpus_that_are_visible_and_one_learns_of_no_cluster():
    assert processes.variables(1, "localhost:1", {"CUDA_VISIBLE_DEVICES": "0,1"}) == [{}]

    def shares(copies: int, **environment: str) -> list[str | None]:
        each = processes.variables(copies, "localhost:1", environment)
        return [place.get("CUDA_VISIBLE_DEVICES") for place in each]

    assert shares(2, CUDA_VISIBLE_DEVICES="3,1,GPU-7,0") == ["3,1", "GPU-7,0"]
    assert shares(2, CUDA_VISIBLE_DEVICES="") == [None, None]
    assert shares(2, CUDA_VISIBLE_DEVICES="0,1", JAX_PLATFORMS="cpu") == [None, None]
    with pytest.raises(ValueError, match=r"3 GPUs .* among 2 processes"):
        shares(2, CUDA_VISIBLE_DEVICES="0,1,2")
