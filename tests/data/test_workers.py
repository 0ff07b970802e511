"""A data worker that is stuck or dies costs no example; a second one, and it says where."""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from darl_jax.data.base import Batch
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import train_batches
from darl_jax.data.sources.base import Record
from darl_jax.data.sources.folder import FolderSource

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)

CONFIG = ImagesConfig(source="folder", image_size=8, num_workers=2, worker_timeout_seconds=1.0)
OPTIONS = {"batch_size": 40, "seed": 0, "start_step": 3}
# Each batch is two chunks of 20 rows, so that each worker makes one of every batch.
STEPS = 4
ILL = 17


class IllSource(FolderSource):
    """Falls ill over record ILL, as long as a marker file does not say that it has been."""

    def __init__(self, folder: pathlib.Path, illness: str, marker: pathlib.Path | None):
        super().__init__(str(folder), "train")
        self.illness, self.marker = illness, marker

    def read(self, index: list[int]) -> list[Record]:
        if ILL in index and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.write_text(str(os.getpid()))
            if self.illness == "sleep":
                time.sleep(10_000)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(50):
        pixels = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    return tmp_path / "images"


def undisturbed(folder: pathlib.Path) -> list[Batch]:
    source = FolderSource(str(folder), "train")
    config = dataclasses.replace(CONFIG, num_workers=0, worker_timeout_seconds=60.0)
    with train_batches(ImageSplit(source, config), config, **OPTIONS) as batches:
        return [next(batches) for _ in range(STEPS)]


def assert_equal(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def workers() -> list[multiprocessing.process.BaseProcess]:
    return [p for p in multiprocessing.active_children() if p.name == "data-worker"]


@pytest.mark.parametrize("illness", ["sleep", "die"])
def test_worker_that_falls_ill_once_is_replaced_and_the_batches_are_the_same(
    folder: pathlib.Path, illness: str, caplog: pytest.LogCaptureFixture
) -> None:
    marker = folder.parent / "been"
    source = IllSource(folder, illness, marker)
    with train_batches(ImageSplit(source, CONFIG), CONFIG, **OPTIONS) as batches:
        result = [next(batches) for _ in range(STEPS)]
        assert len(workers()) == 2
    assert_equal(result, undisturbed(folder))
    (warning,) = (record.message for record in caplog.records if "data worker" in record.message)
    pid = marker.read_text()
    said = {"sleep": "has made nothing for 1 s", "die": r"ended .* \(exit code -9\)"}[illness]
    assert re.match(
        rf"data worker [12] of 2 \(pid {pid}\) {said} and was to read {folder}", warning
    )
    # Its record is among the twenty that are named, and so are files.
    numbers = re.search(r"split 'train', records ([\d, ]+) \(\d\d\.png, ", warning)[1].split(", ")
    assert len(numbers) == 20 and str(ILL) in numbers
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize(("illness", "kind"), [("sleep", TimeoutError), ("die", ChildProcessError)])
def test_records_that_take_two_workers_are_an_error_that_names_them(
    folder: pathlib.Path, illness: str, kind: type[OSError]
) -> None:
    source = IllSource(folder, illness, None)
    batches = train_batches(ImageSplit(source, CONFIG), CONFIG, **OPTIONS)
    with pytest.raises(kind) as caught:
        list(itertools.islice(batches, STEPS))
    message = str(caught.value)
    assert message.startswith("two workers in turn were lost at the same records: data worker ")
    assert re.search(rf"split 'train', records [\d, ]*\b{ILL}\b", message)
    key = {"sleep": "data.worker_timeout_seconds", "die": "data.num_workers"}[illness]
    assert key in message and "\n" not in message
    assert not workers()


def test_worker_that_is_killed_from_outside_is_replaced_and_the_batches_are_the_same(
    folder: pathlib.Path,
) -> None:
    source = FolderSource(str(folder), "train")
    with train_batches(ImageSplit(source, CONFIG), CONFIG, **OPTIONS) as batches:
        result = [next(batches)]
        for worker in workers():
            worker.kill()
            worker.join()
        result += [next(batches) for _ in range(STEPS - 1)]
    assert_equal(result, undisturbed(folder))


def test_only_the_time_in_which_a_chunk_is_waited_for_counts(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = FolderSource(str(folder), "train")
    with train_batches(ImageSplit(source, CONFIG), CONFIG, **OPTIONS) as batches:
        next(batches)
        pids = {worker.pid for worker in workers()}
        # The workers have nothing to do meanwhile, and are not taken for stuck.
        time.sleep(2.0)
        for _ in range(STEPS):
            next(batches)
        assert {worker.pid for worker in workers()} == pids
    assert "data worker" not in caplog.text


def test_thread_that_is_stuck_is_an_error_that_names_the_records(folder: pathlib.Path) -> None:
    config = dataclasses.replace(CONFIG, num_workers=0)
    batches = train_batches(ImageSplit(IllSource(folder, "sleep", None), config), config, **OPTIONS)
    with pytest.raises(TimeoutError, match=rf"nothing for 1 s .*records [\d, ]*\b{ILL}\b"):
        list(itertools.islice(batches, STEPS))


# A program that does with the error what the trainer does.
PROGRAM = """
import pathlib, sys, time
from darl_jax.runtime.cli import one_line_errors
from darl_jax.data.sources.folder import FolderSource
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import train_batches

class Stuck(FolderSource):
    def read(self, index):
        if 17 in index:
            time.sleep(10_000)
        return super().read(index)

if __name__ == "__main__":
    config = ImagesConfig(
        source="folder", image_size=8, num_workers=int(sys.argv[2]), worker_timeout_seconds=1.0
    )
    split = ImageSplit(Stuck(sys.argv[1], "train"), config)
    with one_line_errors(1, OSError):
        for _ in train_batches(split, config, batch_size=40, seed=0, start_step=0):
            failing_from = time.monotonic()
"""


@pytest.mark.parametrize("num_workers", [0, 2])
def test_program_ends_with_one_line_although_its_reader_is_stuck(
    folder: pathlib.Path, num_workers: int
) -> None:
    program = folder.parent / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(program), str(folder), str(num_workers)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if line.startswith("error: "))
        began = time.monotonic()
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    # Threads that are well are given two seconds for what they are at; workers are killed.
    assert time.monotonic() - began < 5
    assert "records" in line and "data.worker_timeout_seconds" in line
    assert "Traceback" not in rest
