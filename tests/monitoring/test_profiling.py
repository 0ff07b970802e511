"""The profiler traces the steps of its window, and memory is reported where it is known."""

import gzip
import json
import logging
import tempfile

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath import backend

from darl_jax.monitoring.profiling import ProfileWindow, device_memory, host_memory


class Trace:
    """Records the calls of the profiler, with the steps between."""

    def __init__(self, monkeypatch):
        self.events: list = []
        monkeypatch.setattr(jax.profiler, "start_trace", lambda path: self.start(path))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self.events.append("stop"))

    def start(self, path) -> None:
        (path / "trace.pb").write_bytes(b"trace")
        self.events.append("start")

    def run(self, workdir, steps, **arguments) -> list:
        window = ProfileWindow(workdir, wait=lambda: self.events.append("wait"), **arguments)
        for step in steps:
            window.before_step(step)
            self.events.append(step)
        window.close()
        return self.events


@pytest.mark.parametrize(
    ("steps", "arguments", "expected"),
    [
        ((1, 8), {"num_steps": 2}, [1, 2, "wait", "start", 3, 4, "wait", "stop", 5, 6, 7]),
        ((1, 5), {"num_steps": 9}, [1, 2, "wait", "start", 3, 4, "wait", "stop"]),
        ((4, 9), {"num_steps": 3}, [4, 5, 6, 7, 8]),  # resumed inside
    ],
)
def test_window_holds_its_steps_and_waits_at_both_ends(
    tmp_path, monkeypatch, caplog, steps, arguments, expected
):
    with caplog.at_level(logging.INFO):
        events = Trace(monkeypatch).run(tmp_path, range(*steps), first_step=3, **arguments)
    assert events == expected
    written = f"Profiled steps 3 to 4 into {tmp_path / 'profile'}" in caplog.text
    assert written == any(tmp_path.iterdir()) == ("start" in expected)


def test_trace_for_a_bucket_is_uploaded_and_leaves_nothing_here(tmp_path, monkeypatch):
    files = fsspec.filesystem("memory")
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: files)
    bucket = epath.Path("gs://bucket/profiled")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Trace(monkeypatch).run(bucket, range(1, 5), first_step=2, num_steps=1)
    assert (bucket / "profile" / "trace.pb").read_bytes() == b"trace"
    assert list(tmp_path.iterdir()) == []
    files.store.clear()


def test_trace_shows_the_steps(tmp_path):
    step = jax.jit(lambda x: jnp.sin(x @ x))
    x = step(jnp.ones((64, 64)))
    window = ProfileWindow(tmp_path, first_step=2, num_steps=3, wait=x.block_until_ready)
    for number in range(1, 8):
        window.before_step(number)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            step(x)
    window.close()
    (path,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    assert list(path.parent.glob("*.xplane.pb"))
    trace = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in trace if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [2, 3, 4]


class Device:
    def __init__(self, statistics):
        self.memory_stats = lambda: statistics


def test_device_memory_is_that_of_the_fullest_device(monkeypatch):
    devices = [
        Device({"peak_bytes_in_use": peak * 2**30, "bytes_limit": 80 * 2**30}) for peak in (3, 7, 5)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory() == {"memory/device_peak_gib": 7, "memory/device_limit_gib": 80}
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None), Device({"num_allocs": 3})])
    assert device_memory() == {}


def test_host_memory_grows_with_the_arrays_of_the_process():
    before = host_memory()
    held = np.ones(2**27, np.uint8)  # 1/8 GiB
    after = host_memory()
    grown = after["memory/host_gib"] - before["memory/host_gib"]
    assert grown == pytest.approx(0.125, abs=0.03)
    assert held[0] == 1
    assert 0 < after["memory/host_available_gib"] < 1e5
