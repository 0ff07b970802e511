"""What must be the same for all processes before they begin together."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from darl_jax.runtime.cluster.membership import agree_on, gather


def check_alike(content: Mapping[str, Any], what: str) -> None:
    """Whether all processes have the same content, of JSON values. A collective.

    Where they have not, they would call other collectives, and wait for each other for ever.

    Args:
      content: compared by its hash.
      what: names it in the message.

    Raises:
      ValueError: some have another one than process 0.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    _check(gather(np.frombuffer(digest, np.uint8)), f"have other {what} than process 0")


def check_shared(folder: epath.Path, what: str) -> None:
    """Whether a folder is the same one for all processes. A collective.

    Args:
      folder: exists on each.
      what: names it in the message.

    Raises:
      ValueError: some do not see what process 0 writes there.
      OSError: process 0 cannot write there.
    """
    if jax.process_count() == 1:
        return
    mark = folder / f".shared-{agree_on(secrets.randbits(62))}"
    if jax.process_index() == 0:
        mark.touch()
    gather(np.zeros(()))  # All wait for process 0.
    seen = gather(np.asarray([mark.exists()]))
    if jax.process_index() == 0:
        mark.unlink()
    _check(seen, f"do not see process 0's {what}; it must be a folder that all share, or a bucket")


def _check(rows: np.ndarray, complaint: str) -> None:
    other = np.flatnonzero((rows != rows[0]).any(axis=1)).tolist()
    if other:
        raise ValueError(f"processes {other} {complaint}")
