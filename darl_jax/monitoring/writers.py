"""What a run tells while it goes on: scalars and pictures in files, and a line on the terminal.

In the workdir: `events.out.tfevents.*` for TensorBoard, `metrics.jsonl` for everything else,
`pictures/<name>_<step>.png`, and `<name>_<step>.npz` for arrays.
"""

import contextlib
import io
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

_METRICS_FILE = "metrics.jsonl"
_RESERVED = ("step", "time", "purge_step")

_UPLOAD_SECONDS = 60.0  # between two uploads of a file that lies in a bucket


class MetricWriter:
    """Writes scalars and pictures as TensorBoard events, JSON lines and PNG files.

    A line of `metrics.jsonl` is `{"step": ..., "time": <Unix seconds>, <name>: <value>, ...}`; JSON
    has no words for NaN and the infinities, so those are the strings "NaN", "Infinity" and
    "-Infinity". `read_metrics` reads it all back. What is written is handed to the operating system
    at once, so that a killed run loses nothing. Objects in buckets cannot be appended to: there
    each file is kept in memory and uploaded whole, once a minute and at `flush` and `close`.

    Args:
        workdir: local or bucket path.
        purge_step: first step that this run writes (again). What an earlier, killed run wrote at or
            after it, beyond the checkpoint that this run goes on from, is superseded: it stays in
            the files, marked, and neither TensorBoard nor `read_metrics` shows it. None supersedes
            nothing.
        active: whether anything is written; of several processes, one is active.

    Raises:
        OSError: a file cannot be written (here and in every method).
    """

    def __init__(
        self, workdir: os.PathLike | str, *, purge_step: int | None = None, active: bool = True
    ) -> None:
        self._workdir = epath.Path(workdir)
        self._active = active
        if not active:
            return
        self._lines = AppendedFile(self._workdir / _METRICS_FILE)
        # A line that a killed run left unfinished stays apart, for `read_metrics` to skip.
        if not self._lines.ends_with_newline:
            self._lines.write(b"\n")
        if purge_step is not None and not self._lines.was_empty:
            self._write_line({"purge_step": purge_step, "time": time.time()})
        # TensorBoard reads a run's files in the order of their names.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}"
        self._events = AppendedFile(self._workdir / name)
        self._write_event(file_version="brain.Event:2")
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write_event(step=purge_step, session_log=start)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes numbers (anything that `float` takes) under their names.

        Raises:
            ValueError: a name that the files need for themselves.
        """
        for name in _RESERVED:
            if name in values:
                raise ValueError(f"a metric cannot be called {name!r}")
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": step, "time": time.time()}
        self._write_line(
            line | {name: x if math.isfinite(x) else json.dumps(x) for name, x in numbers.items()}
        )
        self._write_summary(
            step,
            [summary_pb2.Summary.Value(tag=tag, simple_value=x) for tag, x in numbers.items()],
        )

    def images(
        self, step: int, images: Mapping[str, UInt8[np.ndarray, "_height _width _channel"]]
    ) -> None:
        """Writes pictures, grey (1 channel) or RGB (3), to TensorBoard and `pictures/`."""
        if not self._active:
            return
        values = []
        for name, image in images.items():
            height, width, channels = image.shape
            encoded = io.BytesIO()
            Image.fromarray(image[:, :, 0] if channels == 1 else image).save(encoded, "png")
            picture = summary_pb2.Summary.Image(
                height=height,
                width=width,
                colorspace=channels,
                encoded_image_string=encoded.getvalue(),
            )
            values.append(summary_pb2.Summary.Value(tag=name, image=picture))
            path = self._workdir / "pictures" / f"{name.replace('/', '_')}_{step:08d}.png"
            with _naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded.getvalue())
        self._write_summary(step, values)

    def arrays(self, step: int, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes arrays to `<name>_<step>.npz`."""
        if not self._active:
            return
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        path = self._workdir / f"{name}_{step:08d}.npz"
        with _naming(path):
            path.write_bytes(content.getvalue())

    def flush(self) -> None:
        """Uploads what is only in memory yet, in a bucket; local files are up to date anyway."""
        if self._active:
            self._lines.flush()
            self._events.flush()

    def close(self) -> None:
        """Ends the files."""
        if self._active:
            self._lines.close()
            self._events.close()

    def _write_line(self, record: Mapping[str, Any]) -> None:
        self._lines.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def _write_summary(self, step: int, values: list[Any]) -> None:
        self._write_event(step=step, summary=summary_pb2.Summary(value=values))

    def _write_event(self, **fields: Any) -> None:
        """One record: length, its checksum, the event, its checksum."""
        data = event_pb2.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        self._events.write(
            length
            + struct.pack("<I", masked_crc32c(length))
            + data
            + struct.pack("<I", masked_crc32c(data))
        )


def read_metrics(path: os.PathLike | str) -> list[dict[str, int | float]]:
    """The history in a `metrics.jsonl`, as if the run had never been killed.

    Args:
        path: the file, or the workdir that it is in.

    Returns:
        A dict for each line, with "step", "time" and the metrics, in the order of writing. What a
        resumed run superseded is left out, and so are lines that a kill cut short (with a warning).

    Raises:
        FileNotFoundError: there is no such file.
    """
    file = epath.Path(path)
    if file.is_dir():
        file = file / _METRICS_FILE
    if not file.exists():
        raise FileNotFoundError(f"no metrics: there is no file {file}")
    history: list[dict[str, int | float]] = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError:
            logging.warning("%s: line %d is cut short and left out", file, number)
            continue
        if "purge_step" in record:
            history = [earlier for earlier in history if earlier["step"] < record["purge_step"]]
        else:
            history.append(
                {name: float(x) if isinstance(x, str) else x for name, x in record.items()}
            )
    return history


class AppendedFile:
    """A file that grows at its end: on disk with each write, in a bucket with each upload.

    Raises:
        OSError: it cannot be written; the error names it (here and in every method).
    """

    def __init__(self, path: epath.Path) -> None:
        self._path = path
        self._in_bucket = "://" in str(path)
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._in_bucket:
                self._content = bytearray(path.read_bytes() if path.exists() else b"")
                self._uploaded_at = time.monotonic()
                last = bytes(self._content[-1:])
            else:
                # Unbuffered, so that `close` has nothing left that a full disk refuses once more.
                self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 - open as long as this
                self._file.seek(max(self._file.tell() - 1, 0))
                last = self._file.read(1)
        self.was_empty = not last
        self.ends_with_newline = last in (b"", b"\n")

    def write(self, data: bytes) -> None:
        """Appends bytes; on disk, they are handed to the operating system at once."""
        with _naming(self._path):
            if not self._in_bucket:
                left = memoryview(data)
                while left:
                    left = left[self._file.write(left) :]
                return
        self._content += data
        if time.monotonic() - self._uploaded_at > _UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Uploads a file in a bucket."""
        if self._in_bucket:
            with _naming(self._path):
                self._path.write_bytes(bytes(self._content))
            self._uploaded_at = time.monotonic()

    def close(self) -> None:
        """Ends the file."""
        self.flush()
        if not self._in_bucket:
            self._file.close()


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
    """An error of the file system that names the file, which one from a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}") from error
