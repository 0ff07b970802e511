"""Several processes as one run: how they find each other, and how they end together.

Where one process fails the others would wait for it for minutes. Here whatever ends one of them
ends all within seconds, with the same exit code, and each says which process failed first, and why
(`coordinator.py` keeps count). A process that is alone has none of this.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from jax._src import distributed, xla_bridge
from jax.experimental import multihost_utils
from jaxlib import _jax
from jaxtyping import Shaped

from darl_jax.runtime.cluster.coordinator import GRACE_SECONDS, READY, keep_alive
from darl_jax.runtime.cluster.place import Place, find_place

JOIN_SECONDS = 300.0  # machines of a cluster start minutes apart
REACH_SECONDS = 20.0  # a port that listens already; a firewall may let packets vanish
HEARTBEAT_SECONDS = 10
LEAVE_SECONDS = 1800  # while process 0 still writes what only one should; a dead one ends the wait
UNWIND_SECONDS = 5.0  # what the process that failed has to close its files and the like
ALIKE_SECONDS = 0.5  # between processes that fail for the same reason
# 75 is EXIT_INTERRUPTED of cli.py.
_IN_GOOD_ORDER = (0, os.EX_TEMPFAIL)
_COORDINATOR_IS_GONE = {
    "process": None,
    "reason": "the coordinator beside process 0 is gone, by a kill or with its machine",
    "code": 1,
}
# What collectives, the coordination service and the network say when another process is gone.
_OTHERS_ARE_GONE = re.compile(
    r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|\b[Pp]eer\b|[Cc]onnection (closed|reset)"
    r"|[Ss]ocket closed|[Bb]arrier|[Hh]eartbeat"
)


class _Membership:
    """This process's connection to the others, while it is a member."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._leaving = False
        self._failed = threading.Event()  # this process tells that it fails
        self._own_reason = ""
        self._first = threading.Event()  # and it was the first of all
        self._code = 1  # of the first failure
        self._coordinator = _start_coordinator(place) if place.process_id == 0 else None
        self._hub, host = _find_coordinator(place)
        self._lines = self._hub.makefile("r", encoding="utf-8")
        self._say({"process": place.process_id, "num_processes": place.num_processes})
        answer = json.loads(self._line() or json.dumps(_COORDINATOR_IS_GONE))
        if "port" not in answer:
            raise (ValueError if answer["code"] == 2 else ConnectionError)(_because(place, answer))
        threading.Thread(target=self._watch, name="cluster", daemon=True).start()
        try:
            self._client = _join(place, host, answer["port"])
        except ConnectionError as error:
            self.fail(str(error), 1)
            raise

    def fail(self, reason: str, code: int, *, suspect: bool = False) -> bool:
        """Returns if this process is the first that fails; otherwise it ends with the first.

        Args:
          reason: one line.
          code: the exit code for all.
          suspect: whether the reason may be that another process failed before.

        Returns:
          Whether the failure is news.
        """
        if self._failed.is_set():
            return False
        self._own_reason = _one_line(reason)
        self._failed.set()
        # What failed while the program read its input need not be the input's fault.
        message = {"reason": self._own_reason, "code": 1 if suspect else code, "suspect": suspect}
        with contextlib.suppress(OSError):  # of which _watch hears, too
            self._say(message)
        self._first.wait()
        if self._leaving:
            self._code = code
        return True

    def end_with_others(self) -> NoReturn:
        """Waits until `_watch` ends this process, which it does not do while it leaves."""
        while not self._leaving:
            time.sleep(1)
        self.end()

    def leave(self) -> None:
        """Waits for all others to leave in good order, too."""
        # Ends this process if another one fails meanwhile.
        self._client.shutdown()
        distributed.global_state.client = None
        self._leaving = True
        # All others have come this far, so that a coordinator that is gone fails nobody.
        with contextlib.suppress(OSError):
            self._say({"left": True})
            self._hub.shutdown(socket.SHUT_RDWR)
        self._hub.close()
        if self._coordinator is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._coordinator.wait(timeout=GRACE_SECONDS)

    def end(self) -> NoReturn:
        """Ends this process now: what JAX does at exit would wait for the others."""
        # A thread, for another one may be in the middle of a write that never ends.
        flush = threading.Thread(target=_flush, daemon=True)
        flush.start()
        flush.join(timeout=1)
        os._exit(self._code)

    def _say(self, message: dict[str, object]) -> None:
        self._hub.sendall(json.dumps(message).encode() + b"\n")

    def _line(self) -> str:
        """What the coordinator says next; empty when it is gone."""
        try:
            return self._lines.readline()
        except (OSError, ValueError):
            return ""

    def _watch(self) -> None:
        """Waits for the first failure of all; runs on a thread of its own."""
        line = self._line()
        if self._leaving:
            # A signal may fail this process yet, and nobody would answer it.
            self._first.set()
            return
        first = json.loads(line or json.dumps(_COORDINATOR_IS_GONE))
        self._code = first["code"]
        # Where all fail alike one is enough to tell it.
        self._failed.wait(ALIKE_SECONDS)
        if self._failed.is_set() and first["process"] == self.place.process_id:
            self._first.set()
            # What is closed now may wait for processes that are gone.
            threading.Event().wait(UNWIND_SECONDS)
        elif first["reason"] != self._own_reason:
            _tell(_because(self.place, first))
        self.end()


# Of the process, as JAX's distributed state is.
_membership: _Membership | None = None


@contextlib.contextmanager
def member(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Iterator[None]:
    """Makes this process one of a cluster, if it is, until the body ends.

    Its place is found as in `place.find_place`. A process that is alone is left as it is.

    A body that returns, or raises SystemExit with 0 or 75, waits for those of all others. Whatever
    else ends it ends all processes within seconds, with the exit code of the first; this function
    does not return then.

    Args:
      coordinator: host:port on process 0's machine.
      num_processes: of all machines together.
      process_id: from 0 to num_processes - 1.

    Raises:
      ValueError: the settings are not complete or do not fit together.
      ConnectionError: not all processes came together.
    """
    global _membership
    place = find_place(coordinator, num_processes, process_id, os.environ)
    if place is None:
        yield
        return
    if xla_bridge.backends_are_initialized():
        raise RuntimeError("a process joins its cluster before anything else uses JAX's devices")
    _membership = _Membership(place)
    logging.info("Process %d of %d", place.process_id, place.num_processes)
    previous_hook, threading.excepthook = threading.excepthook, _on_lost_exception
    in_good_order: SystemExit | None = None
    try:
        with failing_together():
            try:
                yield
            except SystemExit as stop:
                if _is_failure(stop):
                    raise
                in_good_order = stop
            _membership.leave()
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.code, str):
            _tell(error.code)
        _membership.end()
    finally:
        threading.excepthook = previous_hook
        _membership = None
    if in_good_order is not None:
        raise in_good_order


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """What ends the body with an error ends all processes, before anything outside is closed.

    To be entered inside whatever waits for other processes when it is closed.
    """
    try:
        yield
    except SystemExit as stop:
        if _is_failure(stop):
            # An error that became an exit code is the exit's context.
            why = stop.__context__ or stop.code
            reason = f"exit code {why}" if isinstance(why, int) else str(why)
            fail_together(reason, stop.code if isinstance(stop.code, int) else 1)
        raise
    except BaseException as error:
        # Told here, for what is closed on the way out may never be.
        _fail_with_traceback(error)
        raise


def fail_together(reason: str, code: int) -> None:
    """Tells all processes why they end; returns in the one that is the first, or alone.

    The others end here. The first one should end soon; after some seconds it is made to.
    """
    if _membership is not None:
        suspect = _OTHERS_ARE_GONE.search(reason) is not None
        _membership.fail(reason, code, suspect=suspect)


def leave_together(code: int, message: str) -> NoReturn:
    """Ends this process and all others at once, with the message and exit code of the first.

    May be called from a signal's handler.
    """
    if _membership is None:
        _tell(message)
        os._exit(code)
    if not _membership.fail(message, code):
        # It came while this process was failing already.
        _membership.end_with_others()
    _tell(message)
    _membership.end()


def agree_on(value: int) -> int:
    """Process 0's value, in all processes. A collective."""
    return int(gather(np.asarray(value, np.int64))[0])


def gather(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "process *shape"]:
    """The values of all processes, bit for bit, in the order of the processes. A collective.

    Args:
      values: of the same shape and type in all processes.
    """
    if jax.process_count() == 1:
        return values[None]
    # As bytes: JAX would make float32 of float64.
    raw = np.frombuffer(values.tobytes(), np.uint8)
    rows = np.ascontiguousarray(multihost_utils.process_allgather(raw))
    return rows.view(values.dtype).reshape(-1, *values.shape)


def _start_coordinator(place: Place) -> subprocess.Popen[str]:
    """Starts the process that outlives this one, and waits until it listens."""
    port = place.coordinator.rpartition(":")[2]
    seconds = (JOIN_SECONDS, HEARTBEAT_SECONDS, LEAVE_SECONDS)
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            str(pathlib.Path(__file__).with_name("coordinator.py")),
            port,
            str(place.num_processes),
            *map(str, seconds),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    answer = process.stdout.readline().strip()
    if answer != READY:
        raise ConnectionError(
            f"process 0 cannot coordinate the others at {place.coordinator}: "
            f"{answer or 'the coordinator crashed'}"
        )
    return process


def _find_coordinator(place: Place) -> tuple[socket.socket, str]:
    """Connects to the coordinator, which may start later; returns its host's address, too."""
    host, _, port = place.coordinator.rpartition(":")
    give_up = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            hub = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        except OSError as error:
            if time.monotonic() > give_up:
                raise ConnectionError(
                    f"process {place.process_id} of {place.num_processes} found no coordinator at "
                    f"{place.coordinator} within {JOIN_SECONDS:g} s ({error}); process 0 is to run "
                    "there, with its ports open to all others"
                ) from error
            time.sleep(0.5)
        else:
            hub.settimeout(None)
            keep_alive(hub)
            return hub, host


def _join(place: Place, host: str, port: int) -> _jax.DistributedRuntimeClient:
    """Joins JAX's distributed runtime as jax.distributed.initialize does.

    But for the service, which is not in process 0, and the preemption service, which takes SIGTERM.
    """
    service = f"{host}:{port}"
    try:
        # JAX's client would abort the process after a minute.
        socket.create_connection((host.strip("[]"), port), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"process {place.process_id} cannot reach {service}: {error}; all ports between the "
            "machines must be open"
        ) from error
    if place.gpus is not None:
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, place.gpus)))
    client = _jax.get_distributed_runtime_client(
        service,
        place.process_id,
        init_timeout=60,
        shutdown_timeout=LEAVE_SECONDS,
        heartbeat_timeout=HEARTBEAT_SECONDS,
        use_compression=True,
    )
    client.connect()
    state = distributed.global_state
    state.coordinator_address = service
    state.num_processes = place.num_processes
    state.process_id = place.process_id
    state.client = client
    return client


def _because(place: Place, first: Mapping[str, Any]) -> str:
    """One line that says why this process ends."""
    process, reason = first["process"], first["reason"]
    if first["code"] == os.EX_TEMPFAIL or first["code"] > 128:
        return f"process {place.process_id} ends as process {process} does: {reason}"
    who = "" if process is None else f"process {process} failed: "
    return f"process {place.process_id} ends, because {who}{reason}"


def _is_failure(stop: SystemExit) -> bool:
    return stop.code is not None and stop.code not in _IN_GOOD_ORDER


def _one_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:500] if lines else ""


def _fail_with_traceback(error: BaseException) -> None:
    reason = f"{type(error).__name__}: {error}"
    suspect = _OTHERS_ARE_GONE.search(reason) is not None
    if _membership is not None and _membership.fail(reason, 1, suspect=suspect):
        text = "".join(traceback.format_exception(error)).rstrip()
        _tell(f"process {_membership.place.process_id} failed:\n{text}")


def _on_lost_exception(lost: threading.ExceptHookArgs) -> None:
    """Ends all for an exception on a thread, of which nobody else would hear."""
    if _membership is not None and lost.exc_value is not None:
        _fail_with_traceback(lost.exc_value)
        _membership.end()


def _tell(line: str) -> None:
    # Unbuffered, and below a live line.
    os.write(2, (("\n" if os.isatty(2) else "") + line + "\n").encode())


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
