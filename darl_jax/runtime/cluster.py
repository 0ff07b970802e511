"""Several processes as one run: joining, agreeing, and failing together.

JAX joins the processes and aborts the others when one dies. It does not pass on why: after an
exception the others would wait for minutes, or end with a code that says nothing. Here the first
process to fail records its reason and exit code in `<workdir>/failures/`, and the others end with
that code, because launchers decide by it whether to start again. A process that is killed records
nothing: the others end with code 1, or with 134 where JAX's C++ client notices first.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Shaped

JOIN_SECONDS = 300  # machines of a cluster start minutes apart
HEARTBEAT_SECONDS = 10
LEAVE_SECONDS = 1800  # process 0 may still write files; a dead process ends the wait
POLL_SECONDS = 0.5  # of the record of the first failure
LINGER_SECONDS = 2.0  # of process 0 after its own failure; a few polls of the others
# Absl status codes of a collective or a coordination service that failed.
_RUNTIME_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED):")

# State of the process, as jax.distributed's is.
_joined = False
_process = 0
_record: epath.Path | None = None
_ending = threading.Lock()


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of the run, before anything else uses JAX.

    The arguments come before JAX_COORDINATOR_ADDRESS (host:port on the machine of process 0),
    JAX_NUM_PROCESSES (1 looks for no others) and JAX_PROCESS_ID. Where none is set, JAX looks for a
    SLURM step, a TPU slice and the like; otherwise the process is alone.

    Raises:
      ValueError: some of the settings are missing, or do not fit each other.
      ConnectionError: the processes did not come together.
    """
    global _joined, _process
    variables = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {
        name: os.environ.get(name) if value is None else str(value)
        for name, value in zip(variables, (coordinator, num_processes, process_id), strict=True)
    }
    settings: dict[str, Any] = {}
    if given["JAX_NUM_PROCESSES"] == "1":
        return
    if any(given.values()):
        if missing := [name for name, value in given.items() if not value]:
            raise ValueError(
                "--coordinator, --num_processes and --process_id, or the variables "
                f"{', '.join(variables)}, go together: {' and '.join(missing)} is not set"
            )
        settings = {
            "coordinator_address": given["JAX_COORDINATOR_ADDRESS"],
            "num_processes": int(given["JAX_NUM_PROCESSES"] or 0),
            "process_id": int(given["JAX_PROCESS_ID"] or 0),
            "cluster_detection_method": "deactivate",
        }
    elif "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return  # A shell or batch script has the variables of its job, and is alone.
    jax.config.update("jax_enable_preemption_service", False)  # signals.py handles SIGTERM.
    try:
        jax.distributed.initialize(
            **settings,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except ValueError:
        if not settings:
            return  # JAX found no cluster.
        raise
    except Exception as error:
        raise ConnectionError(
            f"cannot join the other processes at {given[variables[0]] or 'their coordinator'} "
            f"(host:port): {error}"
        ) from error
    _joined, _process = True, settings.get("process_id", 0)
    sys.excepthook = lambda _, error, __: _leave_with_traceback(error)
    threading.excepthook = lambda lost: lost.exc_value and _leave_with_traceback(lost.exc_value)
    _process = jax.process_index()
    logging.info("Process %d of %d", _process, jax.process_count())


def share_failures(workdir: epath.Path) -> None:
    """Makes the first failure end all processes, from here on. A collective.

    Raises:
      ValueError: the workdir, which exists, is not the same folder for all processes.
    """
    global _record
    if not _joined:
        return
    folder = workdir / "failures"
    folder.mkdir(exist_ok=True)
    start = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(agree_on(int(time.time()))))
    attempt = f"{start}-{agree_on(secrets.randbits(20)):05x}"
    mark = folder / f"{attempt}.shared"
    if jax.process_index() == 0:
        mark.touch()
    gather(np.zeros(()))  # All wait for process 0.
    seen = gather(np.asarray([mark.exists()]))
    if jax.process_index() == 0:
        mark.unlink()
    _check(seen, f"do not see process 0's --workdir={workdir}; give a folder that all share")
    _record = folder / f"{attempt}.json"
    threading.Thread(target=_watch, name="failures", daemon=True).start()


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes when the body raises, before cleanup outside waits for the others."""
    try:
        yield
    except Exception as error:
        if _joined:
            _leave_with_traceback(error)
        raise


def fail_together(code: int, message: str, error: Exception | None = None) -> None:
    """Ends all processes, this one as `leave_together`; returns where a process is alone."""
    if _joined:
        leave_together(code, message, error)


def leave_together(code: int, message: str, error: BaseException | None = None) -> NoReturn:
    """Ends this process at once, and the others with the reason and code of the first to fail.

    May be called on any thread. The others print the first line of the message. An error of JAX's
    runtime may mean that another process is gone.
    """
    _ending.acquire()  # Never released: one thread ends the process, others wait here.
    try:
        if _joined:
            code, message = _outcome(code, message, error)
    finally:
        _exit(code, message)


def agree_on(value: int) -> int:
    """Value of process 0, in all processes. A collective."""
    return int(gather(np.asarray(value, np.int64))[0])


def gather(values: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "process *shape"]:
    """Values of all processes, bit for bit, in the order of the processes. A collective."""
    if jax.process_count() == 1:
        return values[None]
    # As bytes: JAX would make float32 of float64.
    raw = np.frombuffer(values.tobytes(), np.uint8)
    with jax.transfer_guard("allow"):
        rows = np.ascontiguousarray(multihost_utils.process_allgather(raw))
    return rows.view(values.dtype).reshape(-1, *values.shape)


def check_alike(content: Mapping[str, Any], name: str) -> None:
    """Checks that all processes have the same content, by its name in the error. A collective.

    Processes that differ would call other collectives, and wait for each other for ever.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    _check(gather(np.frombuffer(digest, np.uint8)), f"have other {name} than process 0")


def _check(rows: np.ndarray, complaint: str) -> None:
    other = np.flatnonzero((rows != rows[0]).any(axis=1)).tolist()
    if other:
        raise ValueError(f"processes {other} {complaint}")


def _outcome(code: int, message: str, error: BaseException | None) -> tuple[int, str]:
    """Exit code and last words of this process: its own where it is the first to fail."""
    reason = message.split("\n")[0][:500]
    if _RUNTIME_STATUS.match(str(error)):
        # A peer that is gone has recorded its reason, unless it was killed.
        code = 1
        message = f"process {_process} lost another process, or failed itself: {reason}"
    own = {"process": _process, "host": socket.gethostname(), "code": code, "reason": reason}
    first = _first_failure(own)
    if first["process"] == _process:
        if _process == 0 and _record is not None:
            _write(message)
            time.sleep(LINGER_SECONDS)  # Without process 0 JAX aborts the others.
            message = ""
        return code, message
    if first["reason"] == reason:
        return first["code"], ""
    verb = "does" if first["code"] == os.EX_TEMPFAIL or first["code"] > 128 else "failed"
    return first["code"], (
        f"process {_process} ends as process {first['process']} on {first['host']} {verb}: "
        f"{first['reason']}"
    )


def _first_failure(own: dict[str, Any]) -> dict[str, Any]:
    """Record of the first failure: `own`, unless another process recorded one."""
    if _record is None:
        return own
    with contextlib.suppress(OSError):
        if (first := _read()) is not None:
            return first
        if "://" in str(_record):  # Buckets have no exclusive creation: of two the second counts.
            _record.write_text(json.dumps(own))
        else:
            with contextlib.suppress(FileExistsError), open(_record, "x") as file:
                file.write(json.dumps(own))
        return _read() or own
    return own


def _read() -> dict[str, Any] | None:
    assert _record is not None
    # Listing the folder asks a network file system anew, as a look at the file alone may not.
    if all(path.name != _record.name for path in _record.parent.iterdir()):
        return None
    with contextlib.suppress(json.JSONDecodeError):  # being written
        return json.loads(_record.read_text())
    return None


def _watch() -> None:
    """Ends this process after the first failure of another; runs on a thread of its own."""
    while True:
        time.sleep(POLL_SECONDS)
        with contextlib.suppress(OSError):
            if _read() is not None:
                leave_together(1, "")


def _leave_with_traceback(error: BaseException) -> NoReturn:
    first_line = f"{type(error).__name__}: {error}".split("\n")[0]
    text = "".join(traceback.format_exception(error)).rstrip()
    leave_together(1, f"{first_line}\n{text}", error)


def _exit(code: int, message: str = "") -> NoReturn:
    """Ends the process without JAX's exit handlers, which wait for the other processes."""
    _write(message)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _write(message: str) -> None:
    if message:  # Unbuffered, and below a live line.
        os.write(2, (("\n" if os.isatty(2) else "") + message + "\n").encode())
