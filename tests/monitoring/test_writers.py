"""Metrics survive kills and resumes."""

import io
import json
import math
import resource
import signal
import struct

import fsspec
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from PIL import Image
from tensorboardX.proto import event_pb2

from darl_jax.monitoring.writers import MetricWriter, read_metrics
from tests.programs import finish, start


def events(workdir) -> list:
    """Events of all files in the order in which TensorBoard reads them; their first one aside."""
    found = []
    for file in sorted(entry for entry in workdir.iterdir() if "tfevents" in entry.name):
        content, position = file.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack("<Q", content[position : position + 8])
            event = event_pb2.Event.FromString(content[position + 12 : position + 12 + length])
            found += [] if event.file_version else [event]
            position += length + 16  # length, its checksum, the event, its checksum
        assert position == len(content)
    return found


def values(history: list[dict], name: str) -> list[tuple]:
    return [(line["step"], line[name]) for line in history if name in line]


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
    found = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert found == [(1, "train/loss", 0.5), (1, "lr", 0.25), (2, "train/loss", 1.0)]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.scalars(3, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    (back,) = read_metrics(tmp_path)
    assert math.isnan(back["a"])
    assert (back["b"], back["c"]) == (math.inf, -math.inf)
    assert math.isnan(events(tmp_path)[0].summary.value[0].simple_value)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_same_in_tensorboard_and_as_files(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8)
    writer = MetricWriter(tmp_path)
    writer.images(12, {"validation/patches": image})
    writer.close()
    value = events(tmp_path)[0].summary.value[0]
    assert value.tag == "validation/patches"
    file = tmp_path / "pictures" / "validation_patches_00000012.png"
    for png in (value.image.encoded_image_string, file.read_bytes()):
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        np.testing.assert_array_equal(pixels, np.broadcast_to(image, (4, 6, 3)))


def test_resumed_run_supersedes_lines_of_the_killed_one_beyond_its_checkpoint(tmp_path):
    killed = MetricWriter(tmp_path, purge_step=1)
    for step in range(1, 6):
        killed.scalars(step, {"loss": step})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert before.count(b"\n") == 5  # no mark at the beginning of a new file
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

    # TensorBoard drops all events from the step of a start on.
    shown: list[tuple] = []
    for event in events(tmp_path):
        if event.session_log.status == event_pb2.SessionLog.START:
            shown = [(step, value) for step, value in shown if step < event.step]
        shown += [(event.step, value.simple_value) for value in event.summary.value]
    assert shown == expected


@pytest.mark.parametrize("cut", [1, 8, 29])
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


@pytest.mark.process
def test_killed_process_loses_nothing_that_it_wrote(tmp_path):
    code = """
import os, signal, sys
from darl_jax.monitoring.writers import MetricWriter
writer = MetricWriter(sys.argv[1])
for step in range(1, 101):
    writer.scalars(step, {"loss": step})
os.kill(os.getpid(), signal.SIGKILL)
"""
    finish(start("-c", code, tmp_path), -signal.SIGKILL)
    expected = [(step, step) for step in range(1, 101)]
    assert values(read_metrics(tmp_path), "loss") == expected
    assert [(e.step, e.summary.value[0].simple_value) for e in events(tmp_path)] == expected


def test_inactive_writer_touches_nothing_and_an_active_one_reports_its_path(tmp_path):
    writer = MetricWriter(tmp_path / "run", purge_step=3, active=False)
    writer.scalars(1, {"loss": 1})
    writer.images(1, {"picture": np.zeros((2, 2, 3), np.uint8)})
    writer.arrays(1, "likelihood", {"bits": np.zeros(3)})
    writer.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/metrics.jsonl"):
        read_metrics(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*/file/metrics.jsonl"):
        MetricWriter(tmp_path / "file")


@pytest.mark.parametrize("limit", [10, 100])
def test_full_disk_is_one_error_that_names_the_file(tmp_path, limit):
    """A limit on the size of files makes writes fail as a full disk does."""
    writer = MetricWriter(tmp_path)
    writer.scalars(1, {"loss": 1})  # more than 10 bytes in both files, and less than 100
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/(metrics|events).*: .*too large"):
            writer.scalars(2, {"loss": 1, "other": 2})
        writer.close()  # has nothing left to write, and so no second error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_bucket_gets_whole_files_and_keeps_earlier_lines(monkeypatch):
    files = fsspec.filesystem("memory")
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: files)
    bucket = epath.Path("gs://bucket/metrics")
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
    assert events(bucket)[-2].summary.value[0].simple_value == 2
    files.store.clear()
