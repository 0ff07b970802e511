"""Runs several copies of a program on this machine as one, and starts them again after a crash.

Each copy gets its rank in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and an
equal share of the GPUs in CUDA_VISIBLE_DEVICES. Lines of all but process 0 begin with their number.
Only the standard library is used: this runs before the environment is there.
"""

import contextlib
import ctypes
import glob
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

# Finished, bad input, diverged: a restart would not help.
FINAL_CODES = (0, 2, 3)
GRACE_SECONDS = 15.0  # for the others to end after the first one failed
POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """GPUs that a program would see, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def variables(
    num_processes: int, coordinator: str, environment: Mapping[str, str]
) -> list[dict[str, str]]:
    """Variables of each process on top of the environment; none for a single process.

    Raises:
      ValueError: there are GPUs, and they cannot be split equally.
    """
    if num_processes == 1:
        return [{}]
    on_cpu = environment.get("JAX_PLATFORMS") == "cpu"
    gpus = [] if on_cpu else visible_gpus(environment)
    if len(gpus) % num_processes:
        raise ValueError(
            f"{len(gpus)} GPUs ({','.join(gpus)}) cannot be split equally among {num_processes} "
            "processes; change --processes, or choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    share = len(gpus) // num_processes
    each = []
    for index in range(num_processes):
        place = {
            "JAX_COORDINATOR_ADDRESS": coordinator,
            "JAX_NUM_PROCESSES": str(num_processes),
            "JAX_PROCESS_ID": str(index),
        }
        if share:
            place["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[index * share : (index + 1) * share])
        each.append(place)
    return each


def supervise(
    program: list[str], num_processes: int, restarts: int, say: Callable[[str], None]
) -> int:
    """Runs the program until it ends for good; returns the exit code of the first failure.

    SIGTERM and SIGINT are passed on to all processes and end the restarts, and so does the end of
    the terminal (SIGHUP), as SIGTERM.

    Args:
      program: the command.
      num_processes: how many copies run at a time.
      restarts: how often all are started again after an end other than `FINAL_CODES`.
      say: prints a line.

    Raises:
      ValueError: as of `variables`.
    """
    with _noted_signals() as signals:
        for attempt in range(restarts + 1):
            places = variables(num_processes, f"localhost:{_free_port()}", os.environ)
            ended = _Set(program, places).run(signals)
            if ended.code == 0:
                return 0
            if signals.stopped:
                say(f"{signals.stopped[0]} ended the run: {ended.what}")
                return ended.code
            if ended.code in FINAL_CODES or not restarts:
                say(f"{ended.what}; {'it is not started again' if restarts else 'all have ended'}")
                return ended.code
            if attempt < restarts:
                say(f"{ended.what}; starts again (restart {attempt + 1} of {restarts})")
        say(f"{ended.what}; gives up after {restarts} restart{'s' if restarts > 1 else ''}")
        return ended.code


@dataclass
class _Signals:
    """Signals of this process: those still to be passed on, and the names of all."""

    pending: list[int] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _noted_signals() -> Iterator[_Signals]:
    signals = _Signals()

    def note(number: int, _: types.FrameType | None) -> None:
        signals.pending.append(signal.SIGTERM if number == signal.SIGHUP else number)
        signals.stopped.append(signal.Signals(number).name)

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _End:
    """End of a set of processes: an exit code, and a clause about the first failure."""

    code: int
    what: str


class _Set:
    """Processes that run together and end together."""

    def __init__(self, program: list[str], places: list[dict[str, str]]) -> None:
        self._began = time.monotonic()
        self._pumps: list[threading.Thread] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for index, place in enumerate(places):
            # Whose live line a terminal is to show; in a file the lines of all must not mix.
            streams = [
                None if index == 0 and stream.isatty() else subprocess.PIPE
                for stream in (sys.stdout, sys.stderr)
            ]
            process = subprocess.Popen(
                program,
                env=os.environ | place,
                stdin=subprocess.DEVNULL,
                stdout=streams[0],
                stderr=streams[1],
                # Ctrl-C in a terminal reaches this process alone, which passes it on once.
                process_group=0,
                preexec_fn=_end_with_parent(os.getpid()),
            )
            self._processes.append(process)
            prefix = f"[{index}] ".encode() if index else b""
            for pipe, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if pipe is not None:
                    pump = threading.Thread(
                        target=_pump, args=(pipe, target.buffer, prefix), daemon=True
                    )
                    pump.start()
                    self._pumps.append(pump)

    def run(self, signals: _Signals) -> _End:
        """Waits for all; after a failure those that do not end are killed."""
        first: tuple[int, int] | None = None
        kill_at = float("inf")
        while any(process.poll() is None for process in self._processes):
            if first is None:
                first = self._first_failure()
                if first is not None:
                    kill_at = time.monotonic() + GRACE_SECONDS
            while signals.pending:
                self._send(signals.pending.pop(0))
            if time.monotonic() > kill_at:
                self._send(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - self._began
        # Data workers of a process that was killed.
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for pump in self._pumps:
            pump.join(timeout=2)
        index, code = first or self._first_failure() or (0, 0)
        who = f"process {index}" if len(self._processes) > 1 else "the program"
        if code >= 0:
            return _End(code, f"{who} ended with exit code {code} after {seconds:.0f} s")
        name = signal.Signals(-code).name
        return _End(128 - code, f"{who} was killed by {name} after {seconds:.0f} s")

    def _first_failure(self) -> tuple[int, int] | None:
        """Number and exit code of a process that failed; of several, one that was killed."""
        failed = [
            (process.returncode >= 0, index, process.returncode)
            for index, process in enumerate(self._processes)
            if process.poll()
        ]
        return min(failed)[1:] if failed else None

    def _send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)


def _pump(pipe: BinaryIO, target: BinaryIO, prefix: bytes) -> None:
    """Copies whole lines, each after the prefix; in place of a live line on a terminal."""
    clear = b"\r\x1b[K" if target.isatty() else b""
    for line in pipe:
        # A closed terminal must not stop the run.
        with contextlib.suppress(OSError, ValueError):
            target.write(clear + prefix + line.rstrip(b"\n") + b"\n")
            target.flush()


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """Makes a new process end when its parent is killed; on Linux alone."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have been killed just before.
        if os.getppid() != parent:
            os._exit(1)

    return arrange


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])
