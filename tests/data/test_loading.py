"""Worker processes: the same batches, clear errors, and an end that nobody has to wait for."""

import dataclasses
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from darl_jax.data import workers as workers_lib
from darl_jax.data.batches import BatchRows
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import eval_batches, train_batches
from darl_jax.data.sources.base import BadRecordError
from darl_jax.data.sources.folder import FolderSource
from darl_jax.data.sources.tfds import TfdsSource

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    for i in range(40):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    return tmp_path


CONFIG = ImagesConfig(source="folder", image_size=16, num_workers=2)


def workers() -> list[str]:
    return [p.name for p in multiprocessing.active_children() if p.name == "data-worker"]


@pytest.mark.parametrize("local_size", [1, 5, 64, 65, 300])
def test_chunks_part_the_batch_without_gap_or_overlap(local_size: int) -> None:
    for process in range(3):
        layout = BatchRows(local_size * 3, process, 3, 64)
        elements = range(7 * layout.chunks, 8 * layout.chunks)
        rows = np.concatenate([layout.of_chunk(element) for element in elements])
        start = 7 * local_size * 3 + process * local_size
        np.testing.assert_array_equal(rows, np.arange(start, start + local_size))
        assert max(len(layout.of_chunk(element)) for element in elements) <= 64


def test_workers_make_the_batches_that_this_process_makes(tfds_dir: str) -> None:
    # Batches of three chunks over two workers, so that a worker's turn changes with the batch.
    source = TfdsSource("imagenet2012", "train", tfds_dir)
    config = ImagesConfig(image_size=32, num_workers=2)
    here = dataclasses.replace(config, num_workers=0)
    options = {"batch_size": 80, "seed": 0, "start_step": 5}
    with (
        train_batches(ImageSplit(source, config), config, **options) as one,
        train_batches(ImageSplit(source, here), here, **options) as other,
    ):
        for _ in range(3):
            batch, expected = next(one), next(other)
            assert batch.keys() == expected.keys()
            for key, value in batch.items():
                np.testing.assert_array_equal(value, expected[key])
                # Not a view of memory that a worker may take back.
                assert value.flags.owndata
    assert not workers()


def test_evaluation_by_workers_ends_and_leaves_none(folder: pathlib.Path) -> None:
    source = FolderSource(str(folder), "train")
    batches = list(eval_batches(ImageSplit(source, CONFIG), CONFIG, batch_size=36))
    index = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(40))
    assert len(batches) == 2
    assert not workers()


def test_workers_error_arrives_as_it_was_raised(folder: pathlib.Path) -> None:
    (folder / "07.png").write_bytes(b"broken")
    source = FolderSource(str(folder), "train")
    with pytest.raises(BadRecordError, match=r"record \d+ \(07\.png\) cannot be decoded") as caught:
        list(eval_batches(ImageSplit(source, CONFIG), CONFIG, batch_size=40))
    assert "\n" not in str(caught.value)
    assert not workers()


def test_closed_in_the_middle_leaves_no_worker_and_yields_nothing(folder: pathlib.Path) -> None:
    source = FolderSource(str(folder), "train")
    for advance in (0, 1):
        batches = train_batches(
            ImageSplit(source, CONFIG), CONFIG, batch_size=8, seed=0, start_step=0
        )
        for _ in range(advance):
            next(batches)
        began = time.monotonic()
        batches.close()
        batches.close()
        assert time.monotonic() - began < 10
        assert not workers()
        with pytest.raises(ValueError, match="closed"):
            next(batches)


def test_dropped_iterator_ends_its_workers(folder: pathlib.Path) -> None:
    source = FolderSource(str(folder), "train")
    batches = train_batches(ImageSplit(source, CONFIG), CONFIG, batch_size=8, seed=0, start_step=0)
    next(batches)
    assert len(workers()) == 2
    del batches
    assert not workers()


def test_too_little_shared_memory_is_an_error_that_names_the_key(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderSource(str(folder), "train")
    state = os.statvfs("/")
    monkeypatch.setattr(workers_lib, "_SHARED_MEMORY", "/")
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*state[:4], 1, *state[5:])))
    with pytest.raises(ValueError, match=r"data\.num_workers=2 needs .* shared memory"):
        train_batches(ImageSplit(source, CONFIG), CONFIG, batch_size=8, seed=0, start_step=0)


# A trainer that takes Ctrl-C as "after this step", and tells which devices its workers may use.
TRAINER = """
import signal, sys, time
from darl_jax.data.sources.folder import FolderSource
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import train_batches

if __name__ == "__main__":
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    config = ImagesConfig(source="folder", image_size=16, num_workers=2)
    split = ImageSplit(FolderSource(sys.argv[1], "train"), config)
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
    folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.Popen:
    script = tmp_path_factory.mktemp("trainer") / "trainer.py"
    script.write_text(TRAINER)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def processes_of_group(group: int) -> list[int]:
    members = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                members.append(int(entry.name))
    return members


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_group_is_left_to_the_trainer(
    folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    process = start_trainer(folder, tmp_path_factory)
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert output == "twenty more batches\nend\n"
    assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_of_a_killed_trainer_do_not_outlive_it(
    folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    process = start_trainer(folder, tmp_path_factory)
    assert len(processes_of_group(process.pid)) >= 3
    process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        stream.close()
    end = time.monotonic() + 20
    while processes_of_group(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes_of_group(process.pid) == []
