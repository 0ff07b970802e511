"""Writers of a run's metrics, pictures and arrays.

In the workdir: `events.out.tfevents.*` for TensorBoard, `metrics.jsonl` for everything else,
`pictures/<name>_<step>.png`, and `<name>_<step>.npz` for arrays.

Events are framed by tensorboardX's synchronous `EventsWriter`. Its `SummaryWriter` hands them to a
thread, which ends on a full disk; the eleventh event after that blocks for ever.
"""

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import UInt8
from tensorboardX import record_writer, summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

_METRICS_FILE = "metrics.jsonl"
_EVENTS_PREFIX = "darl_jax"  # of paths for tensorboardX; see _AppendedFiles

_UPLOAD_SECONDS = 60.0  # between two uploads of a file that lies in a bucket


class MetricWriter:
    """Writes scalars and pictures as TensorBoard events, JSON lines and PNG files.

    A line of `metrics.jsonl` is `{"step": ..., "time": <Unix seconds>, <name>: <value>, ...}`; JSON
    has no words for NaN and the infinities, so those are the strings "NaN", "Infinity" and
    "-Infinity". Every write reaches the operating system at once, so that a killed run loses
    nothing. Objects in buckets cannot be appended to: there each file is kept in memory and
    uploaded whole, once a minute and at `flush` and `close`.

    A run writes steps from `purge_step` on (again): lines of an earlier, killed run from there on
    are superseded. They stay in the files, and neither TensorBoard nor `read_metrics` shows them.
    Of several processes one is active.
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
        # tensorboardX names files by the second, and TensorBoard reads them in this order.
        self._events = EventsWriter(
            f"{_EVENTS_PREFIX}:{self._workdir / 'events'}", filename_suffix=f".{time.time_ns()}"
        )
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write_event(step=purge_step, session_log=start)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes numbers (anything that `float` takes) under their names."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": step, "time": time.time()}
        self._write_line(
            line | {name: x if math.isfinite(x) else json.dumps(x) for name, x in numbers.items()}
        )
        event = summary_pb2.Summary()
        for name, x in numbers.items():
            event.MergeFrom(summary.scalar(name, x))
        self._write_event(step=step, summary=event)

    def images(
        self, step: int, images: Mapping[str, UInt8[np.ndarray, "_height _width _channel"]]
    ) -> None:
        """Writes pictures, gray (1 channel) or RGB (3), to TensorBoard and `pictures/`."""
        if not self._active:
            return
        for name, image in images.items():
            pixels = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
            content = summary.image(name, pixels, dataformats="HWC")
            self._write_event(step=step, summary=content)
            path = self._workdir / "pictures" / f"{name.replace('/', '_')}_{step:08d}.png"
            with _naming(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.value[0].image.encoded_image_string)

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
        """Uploads files that lie in a bucket; local files are up to date anyway."""
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

    def _write_event(self, **fields: Any) -> None:
        self._events.write_event(event_pb2.Event(wall_time=time.time(), **fields))


def read_metrics(path: os.PathLike | str) -> list[dict[str, int | float]]:
    """Lines of a `metrics.jsonl`, or of that in a workdir, as if the run had never been killed.

    Superseded lines are left out, and with a warning those that a kill cut short.
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
    """File that grows at its end: on disk with each write, in a bucket with each upload."""

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
        """Appends bytes; on disk, the operating system has them at once."""
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
        """Uploads a file that lies in a bucket."""
        if self._in_bucket:
            with _naming(self._path):
                self._path.write_bytes(bytes(self._content))
            self._uploaded_at = time.monotonic()

    def close(self) -> None:
        """Ends the file."""
        self.flush()
        if not self._in_bucket:
            self._file.close()


class _AppendedFiles:
    """Factory of files for tensorboardX, which has such ones for S3 and GCS."""

    @staticmethod
    def open(path: str) -> AppendedFile:
        return AppendedFile(epath.Path(path.removeprefix(f"{_EVENTS_PREFIX}:")))


record_writer.register_writer_factory(_EVENTS_PREFIX, _AppendedFiles)


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
    """Names the file in an error of the file system; that of a full disk does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}") from error
