"""One run in a workdir at a time: a lock file that a dead process does not keep.

A file lock of the system would end with its process, but is not to be had in a bucket and on many
shared file systems. `<workdir>/running.json` names host, process and its start instead, and changes
every few seconds. On the host of the holder the process is looked up; elsewhere a file that no
longer changes belongs to nobody.
"""

import contextlib
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
from absl import logging
from etils import epath

FILE = "running.json"
BEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0  # a file without a change for so long is left over
SETTLE_SECONDS = 0.5  # between two processes that take over the same file


class RunningError(ValueError):
    """Another process uses the workdir."""


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Keeps other runs out of an existing workdir while entered.

    Raises:
      RunningError: another run has it, named by its host and process.
    """
    path = workdir / FILE
    me = _me()
    while not _created(path, me):
        holder = _read(path)
        if holder is None:
            continue  # The other run has just ended.
        if _is_alive(path, holder):
            raise RunningError(_refusal(workdir, holder))
        logging.info("Takes over %s of a run that is gone (%s)", path, _name(holder))
        _write(path, me)
        time.sleep(SETTLE_SECONDS)
        winner = _read(path)
        if winner is None or winner["key"] != me["key"]:
            raise RunningError(_refusal(workdir, winner or holder))
        break
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(path, me, stop), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2 * BEAT_SECONDS)  # a file system that hangs is left
        with contextlib.suppress(OSError):
            if (_read(path) or {}).get("key") == me["key"]:
                path.unlink()


def _me() -> dict[str, Any]:
    return {
        "host": _host(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "key": secrets.token_hex(8),
        "time": time.time(),
    }


def _host() -> str:
    """Name of this machine, and of the container if processes are not seen from outside."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _is_alive(path: epath.Path, holder: dict[str, Any]) -> bool:
    """Looks the holder up where it is a process of this host; else waits for a change."""
    if holder["host"] == _host():
        try:
            process = psutil.Process(holder["pid"])
            # A number is used again; a start is counted to a hundredth of a second.
            same = abs(process.create_time() - holder["started"]) < 0.5
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    logging.info("Waits %g s for a sign of %s", SILENT_SECONDS, _name(holder))
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 5)
        now = _read(path)
        if now != holder:
            return now is not None
    return False


def _beat(path: epath.Path, me: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a full disk ends the run elsewhere
            _write(path, me | {"time": time.time()})


def _created(path: epath.Path, content: dict[str, Any]) -> bool:
    """Writes the file where there is none."""
    if "://" in str(path):  # Buckets have no exclusive creation here.
        if path.exists():
            return False
        _write(path, content)
        time.sleep(SETTLE_SECONDS)
        return (_read(path) or {}).get("key") == content["key"]
    try:
        with open(path, "x") as file:
            file.write(json.dumps(content))
    except FileExistsError:
        return False
    return True


def _read(path: epath.Path) -> dict[str, Any] | None:
    for _ in range(10):
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:
            time.sleep(0.1)  # being written
    # Cut off, by a machine that went down: of nobody.
    return {"host": "an unknown host", "pid": 0, "started": 0.0, "key": "", "time": 0.0}


def _write(path: epath.Path, content: dict[str, Any]) -> None:
    """Replaces the file at once."""
    if "://" in str(path):
        path.write_text(json.dumps(content))
    else:
        partial = pathlib.Path(f"{path}.{content['key']}")
        partial.write_text(json.dumps(content))
        os.replace(partial, path)


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host'].split()[0]}"


def _refusal(workdir: epath.Path, holder: dict[str, Any]) -> str:
    return (
        f"{workdir} is in use by {_name(holder)}; stop that run, or give another --workdir "
        f"(if there is none, delete {workdir / FILE})"
    )
