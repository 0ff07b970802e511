"""What the processes of a run tell each other while they save and restore.

One process may see what the others do not: its own part of a checkpoint is damaged, its own disk
is full. None of the others may go on, or wait for ever, because of that.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from darl_jax.training.checkpoint.reading import DamagedCheckpointError

_MESSAGE_BYTES = 1024  # of an error that one process tells the others


def barrier(*, key: str, timeout_ms: int) -> None:
    """Orbax's barrier for its background threads, at which a save that failed does not wait.

    Orbax comes here in a `finally` as well. The other processes never get to the same barrier
    then, so that the failure would be seen only after the time-out.
    """
    failure = sys.exc_info()[1]
    if failure is not None:
        raise failure
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def from_all(value: Any) -> np.ndarray:
    """The values of all processes, along a new first axis."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    return np.asarray(multihost_utils.process_allgather(value))


def together(path: epath.Path, action: Callable[[], None]) -> None:
    """Does `action` in every process; all go on when it is done, or all raise.

    Raises:
        DamagedCheckpointError: `action` raised it in one process or more, and nothing else.
        OSError: `action` raised something else in another process; in this one it is raised.
    """
    problem: Exception | None = None
    try:
        action()
    except Exception as error:
        problem = error
    # First byte: 0 done, 1 damage, 2 anything else. Then what it is.
    row = np.zeros(1 + _MESSAGE_BYTES, np.uint8)
    if problem is not None:
        damage = problem.reason if isinstance(problem, DamagedCheckpointError) else None
        text = damage or str(problem) or type(problem).__name__
        encoded = text.encode()[:_MESSAGE_BYTES]
        row[0] = 2 if damage is None else 1
        row[1 : 1 + len(encoded)] = np.frombuffer(encoded, np.uint8)
    rows = from_all(row)
    worst = int(rows[:, 0].max())
    if worst == 0:
        return
    if problem is not None and row[0] == worst:
        raise problem
    process = int(rows[:, 0].argmax())
    text = rows[process, 1:].tobytes().rstrip(b"\0").decode(errors="replace")
    if worst == 1:
        raise DamagedCheckpointError(path, f"{text} (seen by process {process})")
    raise OSError(f"process {process} cannot use {path}: {text}")
