"""Log lines for the phases of a start that take long."""

import contextlib
import threading
import time
from collections.abc import Iterator

from absl import logging

_SILENT_SECONDS = 2.0


@contextlib.contextmanager
def phase(name: str, *, silent_seconds: float = _SILENT_SECONDS) -> Iterator[None]:
    """Logs that a phase is under way once it has taken 2 seconds, and its duration when it ends."""
    began = time.monotonic()
    timer = threading.Timer(silent_seconds, lambda: logging.info("%s ...", name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    seconds = time.monotonic() - began
    if seconds > silent_seconds:
        logging.info("%s: done in %.1f s", name, seconds)
