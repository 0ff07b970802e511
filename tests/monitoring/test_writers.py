"""Metrics survive kills and resumes."""

import io
import json
import math
import os
import pathlib
import resource
import signal
import struct
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from PIL import Image
from tensorboardX.proto import event_pb2

from darl_jax.monitoring.writers import MetricWriter, read_metrics

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit (RFC 3720, B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def parse_events(content: bytes) -> list:
    """Events of a file in TensorBoard's format, each checksum checked."""
    events, at = [], 0
    while at < len(content):
        header = content[at : at + 8]
        (length,) = struct.unpack("<Q", header)
        assert struct.unpack("<I", content[at + 8 : at + 12])[0] == masked_crc32c(header)
        data = content[at + 12 : at + 12 + length]
        end = at + 12 + length
        assert struct.unpack("<I", content[end : end + 4])[0] == masked_crc32c(data)
        events.append(event_pb2.Event.FromString(data))
        at = end + 4
    return events


def event_files(workdir) -> list:
    return sorted(workdir.glob("events.out.tfevents.*"))


def values(history: list[dict], name: str) -> list[tuple]:
    return [(line["step"], line[name]) for line in history if name in line]


def test_crc32c_of_the_standard_check_string():
    assert crc32c(b"123456789") == 0xE3069283


def test_scalars_come_back_from_both_files(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.scalars(1, {"train/loss": 0.5, "lr": np.float32(0.25)})
    writer.scalars(2, {"train/loss": 1})
    writer.close()
    history = read_metrics(tmp_path)
    assert values(history, "train/loss") == [(1, 0.5), (2, 1.0)]
    assert values(history, "lr") == [(1, 0.25)]
    assert all(line["time"] > 1.6e9 for line in history)
    assert read_metrics(tmp_path / "metrics.jsonl") == history

    (file,) = event_files(tmp_path)
    first, *events = parse_events(file.read_bytes())
    assert first.file_version == "brain.Event:2"
    found = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert found == [(1, "train/loss", 0.5), (1, "lr", 0.25), (2, "train/loss", 1.0)]


def test_what_is_not_finite_stays_valid_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.scalars(3, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    (back,) = read_metrics(tmp_path)
    assert math.isnan(back["a"])
    assert (back["b"], back["c"]) == (math.inf, -math.inf)
    event = parse_events(event_files(tmp_path)[0].read_bytes())[1]
    assert math.isnan(event.summary.value[0].simple_value)


@pytest.mark.parametrize("name", ["step", "time", "purge_step"])
def test_names_that_the_file_needs_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"cannot be called '{name}'"):
        MetricWriter(tmp_path).scalars(1, {name: 1.0})


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_same_in_tensorboard_and_as_files(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8)
    writer = MetricWriter(tmp_path)
    writer.images(12, {"validation/patches": image})
    writer.close()
    value = parse_events(event_files(tmp_path)[0].read_bytes())[1].summary.value[0]
    assert value.tag == "validation/patches"
    assert (value.image.height, value.image.width) == (4, 6)
    file = tmp_path / "pictures" / "validation_patches_00000012.png"
    for png in (value.image.encoded_image_string, file.read_bytes()):
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(pixels, np.broadcast_to(image, (4, 6, 3)))


def test_arrays_are_in_a_file_of_their_step(tmp_path):
    arrays = {"bits": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "bc"])}
    MetricWriter(tmp_path).arrays(12, "likelihood", arrays)
    MetricWriter(tmp_path, active=False).arrays(13, "likelihood", arrays)
    (file,) = tmp_path.glob("*.npz")
    assert file.name == "likelihood_00000012.npz"
    with np.load(file) as found:
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


def test_resumed_run_supersedes_what_the_killed_one_wrote_beyond_its_checkpoint(tmp_path):
    killed = MetricWriter(tmp_path, purge_step=1)
    for step in range(1, 6):
        killed.scalars(step, {"loss": step})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    resumed = MetricWriter(tmp_path, purge_step=4)
    resumed.scalars(4, {"loss": 40})
    resumed.scalars(5, {"loss": 50})
    resumed.close()
    again = MetricWriter(tmp_path, purge_step=6)
    again.scalars(6, {"loss": 60})
    again.close()
    killed.close()

    expected = [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50), (6, 60)]
    assert values(read_metrics(tmp_path), "loss") == expected
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before)

    # TensorBoard reads the files in order, and drops all from the step of a start event on.
    shown: list[tuple] = []
    for file in event_files(tmp_path):
        for event in parse_events(file.read_bytes()):
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = [(step, value) for step, value in shown if step < event.step]
            shown += [(event.step, value.simple_value) for value in event.summary.value]
    assert shown == expected


def test_nothing_is_superseded_without_a_purge_step(tmp_path):
    for value in (1, 2):
        writer = MetricWriter(tmp_path)
        writer.scalars(1, {"loss": value})
        writer.close()
    assert values(read_metrics(tmp_path), "loss") == [(1, 1), (1, 2)]
    starts = [e for f in event_files(tmp_path) for e in parse_events(f.read_bytes())]
    assert not any(e.HasField("session_log") for e in starts)


def test_new_run_leaves_no_mark_in_an_empty_file(tmp_path):
    writer = MetricWriter(tmp_path, purge_step=1)
    writer.scalars(1, {"loss": 1})
    writer.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_line_cut_short_by_a_kill_is_skipped_and_damages_no_other(tmp_path, caplog, cut):
    writer = MetricWriter(tmp_path)
    writer.scalars(1, {"loss": 1})
    writer.scalars(2, {"loss": 2})
    writer.close()
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    # Only the line's end is missing when one byte is: then nothing is lost.
    kept = [(1, 1)] if cut > 1 else [(1, 1), (2, 2)]
    assert values(read_metrics(tmp_path), "loss") == kept
    assert ("line 2 is cut short" in caplog.text) == (cut > 1)

    resumed = MetricWriter(tmp_path)
    resumed.scalars(3, {"loss": 3})
    resumed.close()
    assert values(read_metrics(tmp_path), "loss") == [*kept, (3, 3)]


def test_killed_process_loses_nothing_that_it_wrote(tmp_path):
    code = """
import os, signal, sys
from darl_jax.monitoring.writers import MetricWriter
writer = MetricWriter(sys.argv[1])
for step in range(1, 101):
    writer.scalars(step, {"loss": step})
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=str(REPOSITORY)),
        check=False,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    expected = [(step, step) for step in range(1, 101)]
    assert values(read_metrics(tmp_path), "loss") == expected
    events = parse_events(event_files(tmp_path)[0].read_bytes())[1:]
    assert [(e.step, e.summary.value[0].simple_value) for e in events] == expected


def test_inactive_writer_touches_nothing(tmp_path):
    writer = MetricWriter(tmp_path / "run", purge_step=3, active=False)
    writer.scalars(1, {"loss": 1})
    writer.images(1, {"picture": np.zeros((2, 2, 3), np.uint8)})
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_missing_history_and_unwritable_workdir_are_reported_by_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/metrics.jsonl"):
        read_metrics(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*/file/metrics.jsonl"):
        MetricWriter(tmp_path / "file")


def test_full_disk_is_reported_by_path(tmp_path):
    """A limit on the size of files makes writes fail as a full disk does."""
    writer = MetricWriter(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/metrics.jsonl: .*too large"):
            writer.scalars(1, {"loss": 1})
        writer.close()  # has nothing left to write, and so no second error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def bucket(monkeypatch):
    """`gs://` paths, kept in memory."""
    files = fsspec.filesystem("memory")
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: files)
    yield epath.Path("gs://bucket/run")
    files.store.clear()


def test_bucket_gets_whole_files_and_keeps_earlier_lines(bucket):
    for step in (1, 2):
        writer = MetricWriter(bucket, purge_step=step)
        writer.scalars(step, {"loss": step})
        writer.images(step, {"picture": np.zeros((2, 2, 3), np.uint8)})
        if step == 1:
            assert not (bucket / "metrics.jsonl").exists()
            writer.flush()
            assert values(read_metrics(bucket), "loss") == [(1, 1)]
        writer.close()
    assert values(read_metrics(bucket), "loss") == [(1, 1), (2, 2)]
    assert (bucket / "pictures" / "picture_00000002.png").exists()
    files = sorted(file for file in bucket.iterdir() if "tfevents" in file.name)
    assert len(files) == 2
    assert parse_events(files[1].read_bytes())[-2].summary.value[0].simple_value == 2
