"""Output files that appear under their name only when they are whole."""

import os
import pathlib

from darl_jax.runtime import signals


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file under a temporary name, syncs it to the disk, and moves it to its own.

    Raises:
      FileExistsError: there is a file or folder of this name.
    """
    check_absent(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with signals.unfinished(partial):
        with partial.open("xb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(partial, path)


def check_absent(path: pathlib.Path) -> None:
    """Raises FileExistsError where a file or folder of this name is there."""
    if path.exists():
        raise FileExistsError(f"--output={path} exists; name a new file, or remove it first")
