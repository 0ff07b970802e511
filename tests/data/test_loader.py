"""Worker processes: the same batches, one clear error, and an end that nobody has to wait for."""

import dataclasses
import itertools
import os
import pathlib
import re
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from darl_jax.data import pipeline
from darl_jax.data.batches import BatchRows
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import eval_batches, train_batches
from darl_jax.data.sources.base import BadRecordError, Record
from darl_jax.data.sources.folder import FolderSource
from tests.programs import finish, is_running, start

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

CONFIG = ImagesConfig(source="folder", image_size=16, num_workers=2)
ILL = 17


class IllSource(FolderSource):
    """Falls ill over record ILL."""

    illness = ""

    def read(self, index: list[int]) -> list[Record]:
        if ILL in index and self.illness == "stuck":
            time.sleep(10_000)
        if ILL in index and self.illness == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


@pytest.fixture
def source(tmp_path: pathlib.Path) -> IllSource:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(40):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    return IllSource(str(tmp_path / "images"), "train")


def test_workers_make_the_batches_of_this_process_and_leave_nothing(source, monkeypatch):
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 2)
    split = ImageSplit(source, CONFIG)
    here = dataclasses.replace(CONFIG, num_workers=0)
    options = {"batch_size": 80, "seed": 0, "start_step": 5}
    # Batches of three chunks over two workers: a worker's turn changes with the batch.
    with train_batches(split, here, **options) as batches:
        expected = [next(batches) for _ in range(3)]
    with train_batches(split, CONFIG, **options) as batches:
        for other in expected:
            batch = next(batches)
            assert batch.keys() == other.keys()
            for key, value in batch.items():
                np.testing.assert_array_equal(value, other[key])
                assert value.flags.owndata  # Not a view of memory that is given back.
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert children() == []
    with pytest.raises(ValueError, match="closed"):
        next(batches)


@pytest.mark.slow
def test_evaluation_of_many_records_by_workers_raises_their_error_or_ends(source, monkeypatch):
    monkeypatch.setattr(pipeline, "_FEW_RECORDS", 10)
    split = ImageSplit(source, CONFIG)
    batches = list(eval_batches(split, CONFIG, batch_size=36))
    index = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(40))
    assert children() == []
    pathlib.Path(source.dataset, "07.png").write_bytes(b"broken")
    with pytest.raises(BadRecordError, match=r"record \d+ \(07\.png\) cannot be decoded") as caught:
        list(eval_batches(split, CONFIG, batch_size=40))
    assert "\n" not in str(caught.value)
    assert children() == []


@pytest.mark.parametrize("illness", ["stuck", "killed"])
def test_lost_worker_is_one_error_that_names_worker_process_and_records(source, illness):
    source.illness = illness
    config = dataclasses.replace(CONFIG, worker_timeout_seconds=2.0)
    split = ImageSplit(source, config)
    with train_batches(split, config, batch_size=40, seed=0, start_step=0) as batches:
        with pytest.raises((TimeoutError, ChildProcessError)) as caught:
            list(itertools.islice(batches, 4))
        raised = time.monotonic()
    assert time.monotonic() - raised < 15
    message = str(caught.value)
    said = {"stuck": "has made nothing for 2 s", "killed": "died while it made"}[illness]
    assert re.match(rf"data worker [12] of 2 \(pid \d+\) {said}", message)
    assert re.search(rf"split 'train', records [\d, ]*\b{ILL}\b[\d, ]* \(\d\d\.png, ", message)
    key = {"stuck": "data.worker_timeout_seconds", "killed": "data.num_workers"}[illness]
    assert key in message and "\n" not in message
    assert children() == []


def children() -> list[psutil.Process]:
    """Grain's worker processes of this one; resource trackers stay."""
    return [child for child in psutil.Process().children() if "spawn_main" in str(child.cmdline())]


@pytest.mark.parametrize("local_size", [1, 5, 64, 65, 300])
def test_chunks_part_the_batch_without_gap_or_overlap(local_size):
    for process in range(3):
        rows = BatchRows(local_size * 3, process, 3, 64)
        chunks = range(7 * rows.chunks, 8 * rows.chunks)
        joined = np.concatenate([rows.of_chunk(chunk) for chunk in chunks])
        start = 7 * local_size * 3 + process * local_size
        np.testing.assert_array_equal(joined, np.arange(start, start + local_size))
        assert max(len(rows.of_chunk(chunk)) for chunk in chunks) <= 64


def test_too_little_shared_memory_for_training_and_evaluation_is_an_error_at_the_start(
    source, monkeypatch
):
    split = ImageSplit(source, CONFIG)
    monkeypatch.setattr(pipeline, "_FEW_RECORDS", 10)
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 2)
    one = 2 * pipeline.CHUNKS_IN_FLIGHT * 32 * (16 * 16 * 3 + 4)
    state = os.statvfs("/")
    free = [one // state.f_frsize + 1]
    monkeypatch.setattr(
        os, "statvfs", lambda _: os.statvfs_result((*state[:4], free[0], *state[5:]))
    )
    pipeline.check_shared_memory((split, CONFIG))
    with pytest.raises(ValueError, match=r"data\.num_workers=2 needs .* shared memory"):
        pipeline.check_shared_memory((split, CONFIG), (split, CONFIG))
    monkeypatch.setattr(pipeline, "_FEW_RECORDS", 40)
    pipeline.check_shared_memory((split, CONFIG), (split, CONFIG))


# A trainer that takes Ctrl-C as "after this step".
TRAINER = """
import signal, sys, time
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.pipeline import train_batches
from darl_jax.runtime.cli import one_line_errors
from tests.data.test_loader import IllSource, ImageSplit

if __name__ == "__main__":
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    config = ImagesConfig(
        source="folder", image_size=16, num_workers=int(sys.argv[2]), worker_timeout_seconds=2.0
    )
    source = IllSource(sys.argv[1], "train")
    source.illness = sys.argv[3]
    split = ImageSplit(source, config)
    with one_line_errors(1, OSError):
        with train_batches(split, config, batch_size=8, seed=0, start_step=0) as batches:
            next(batches)
            print("ready", flush=True)
            while not asked:
                next(batches)
                time.sleep(0.01)
            for _ in range(20):
                next(batches)
            print("twenty more batches", flush=True)
    print("end", flush=True)
"""


def start_trainer(
    source: FolderSource, tmp_path: pathlib.Path, num_workers: int = 2, illness: str = ""
) -> subprocess.Popen[str]:
    script = tmp_path / "trainer.py"  # A file, which worker processes can import.
    script.write_text(TRAINER)
    return start(script, source.dataset, num_workers, illness)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_leave_a_signal_to_the_trainer_and_do_not_outlive_it(source, tmp_path, number):
    trainer = start_trainer(source, tmp_path)
    assert trainer.stdout is not None and trainer.stdout.readline() == "ready\n"
    workers = psutil.Process(trainer.pid).children(recursive=True)
    assert len(workers) >= 2
    if number == signal.SIGINT:
        for process in (psutil.Process(trainer.pid), *workers):  # As a terminal does.
            process.send_signal(number)
        output, errors = finish(trainer)
        assert output == "twenty more batches\nend\n"
        assert "Traceback" not in errors and "leaked" not in errors
    else:
        trainer.kill()
        trainer.communicate()
    end = time.monotonic() + 20
    while any(is_running(worker.pid) for worker in workers) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [worker for worker in workers if is_running(worker.pid)]


def test_program_whose_reader_is_stuck_ends_with_one_line(source, tmp_path):
    _, errors = finish(start_trainer(source, tmp_path, num_workers=0, illness="stuck"), 1)
    line = next(line for line in errors.splitlines() if line.startswith("error: "))
    assert "records" in line and "data.worker_timeout_seconds" in line
    assert "Traceback" not in errors
