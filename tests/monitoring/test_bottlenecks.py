"""What holds a run up is named, with what to change, and not over and over."""

import os
import socket

import numpy as np
import pytest

from darl_jax.data.images.config import ImagesConfig
from darl_jax.monitoring.bottlenecks import (
    Bottlenecks,
    host_names,
    input_advice,
    input_shares,
    straggler,
)

# Seconds of 100 steps that took 20 s: waiting for input, the host's own, waiting for the device.
WELL_FED = (0.2, 1.0, 18.8)
SHORT_OF_DATA = (15.0, 1.0, 4.0)
STARVED = (18.5, 1.0, 0.5)
SLOW_HOST = (0.2, 19.5, 0.3)


def times(*rows) -> np.ndarray:
    return np.array(rows)


def test_process_that_never_waits_for_its_device_is_the_straggler():
    found = straggler(times(WELL_FED, WELL_FED, STARVED, WELL_FED), 100)
    assert (found.process, found.by_input) == (2, True)
    assert found.seconds == pytest.approx(0.183)
    found = straggler(times(SLOW_HOST, WELL_FED, WELL_FED), 100)
    assert (found.process, found.by_input) == (0, False)
    assert found.seconds == pytest.approx(0.185)


@pytest.mark.parametrize(
    "rows",
    [
        (STARVED,),  # Nobody waits for it.
        (WELL_FED, WELL_FED),
        (STARVED, STARVED),  # No slower than the others.
        (WELL_FED, (7.0, 1.0, 12.0)),  # Its device is still the slower one.
    ],
    ids=["alone", "all well", "all starved", "hidden by the device"],
)
def test_no_straggler_where_none_holds_the_others_up(rows):
    assert straggler(times(*rows), 100) is None


def test_times_of_float32_as_processes_send_them_are_accepted():
    assert straggler(times(WELL_FED, STARVED).astype(np.float32), 100).process == 1


@pytest.mark.parametrize(
    ("data", "cores", "advice"),
    [
        (ImagesConfig(num_workers=2), 16, "num_workers=2 leaves cores unused: set it to 16"),
        (ImagesConfig(num_workers=0), 4, "num_workers=0 leaves cores unused: set it to 4"),
        (
            ImagesConfig(num_workers=8),
            8,
            "all 8 cores have a worker: spread the run over more hosts",
        ),
        (ImagesConfig(num_workers=8), 4, "all 4 cores have a worker"),
        (ImagesConfig(in_memory=True, num_workers=0), 8, "in memory already"),
        (ImagesConfig(data_dir="gs://b/d", num_workers=8), 8, "gs://b/d is read over the network"),
        (ImagesConfig(data_dir="gs://b/d", num_workers=2), 8, "set it to 8"),
    ],
)
def test_advice_follows_from_how_the_data_is_read(data, cores, advice):
    assert advice in input_advice(data, cores)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(number: int = 1, clock=None, **data) -> Bottlenecks:
    return Bottlenecks(
        ImagesConfig(**data),
        [f"host{i // 2}" for i in range(number)],
        cpu_count=16,
        clock=clock or Clock(),
    )


def test_input_above_a_tenth_is_warned_of_with_its_share_and_advice():
    (text,) = watch(num_workers=4).warnings(times(SHORT_OF_DATA), 100)
    assert text == (
        "Input-bound: the run waited for data in 75% of the last 100 steps' time; "
        "config.data.num_workers=4 leaves cores unused: set it to 16"
    )
    assert watch().warnings(times((1.9, 1.0, 17.1)), 100) == []
    assert len(watch().warnings(times((2.1, 1.0, 16.9)), 100)) == 1


def test_processes_of_one_host_share_its_cores():
    (text,) = watch(2, num_workers=4).warnings(times(STARVED, STARVED), 100)
    assert "process 0 on host0" in text
    assert "set it to 8" in text


def test_straggler_is_named_with_its_host_and_its_reason():
    (text,) = watch(4).warnings(times(WELL_FED, WELL_FED, STARVED, WELL_FED), 100)
    assert text.startswith(
        "Process 2 on host1 holds the others up, by up to 0.183 of the 0.2 s of a step; it waits "
        "for its data"
    )
    (text,) = watch(4).warnings(times(WELL_FED, WELL_FED, WELL_FED, SLOW_HOST), 100)
    assert "Process 3 on host1" in text
    assert "its program is slow itself" in text


def test_slow_host_does_not_hide_that_another_waits_for_data():
    straggles, starves = watch(3).warnings(times(SLOW_HOST, WELL_FED, SHORT_OF_DATA), 100)
    assert straggles.startswith("Process 0 on host0 holds")
    assert starves.startswith("Input-bound: process 2 on host1")


def test_same_warning_comes_again_only_after_minutes_and_another_at_once():
    clock = Clock()
    watched = watch(2, clock)
    assert watched.warnings(times(WELL_FED, STARVED), 100)
    clock.now = 200
    assert not watched.warnings(times(WELL_FED, STARVED), 100)
    assert watched.warnings(times(STARVED, WELL_FED), 100)
    clock.now = 301
    assert watched.warnings(times(WELL_FED, STARVED), 100)


def test_short_windows_are_judged_together():
    watched = watch()
    fifth = times(SHORT_OF_DATA) / 5  # 4 s
    assert [len(watched.warnings(fifth, 20)) for _ in range(3)] == [0, 0, 1]
    hiccup = times((2.0, 0.0, 0.0))
    watched = watch()
    assert not watched.warnings(hiccup, 1)
    assert not watched.warnings(times((0.0, 0.2, 19.8)), 100)


def test_share_of_input_is_that_of_each_process():
    shares = input_shares(times(WELL_FED, SHORT_OF_DATA, (0.0, 0.0, 0.0)))
    np.testing.assert_allclose(shares, [0.01, 0.75, 0])


def test_hosts_have_their_names():
    assert host_names() == [socket.gethostname()[:64]]


def test_cores_are_those_of_the_machine():
    warned = Bottlenecks(ImagesConfig(num_workers=0), ["here"]).warnings(times(STARVED), 100)
    assert f"set it to {os.cpu_count()}" in warned[0]
