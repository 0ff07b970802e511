"""A bottleneck is named with its process, and not over and over."""

import socket

import numpy as np
import pytest

from darl_jax.monitoring.bottlenecks import Bottlenecks, host_names, straggler

# Seconds of 100 steps that took 20 s: waiting for input, the host's own, waiting for the device.
WELL_FED = (0.2, 1.0, 18.8)
SHORT_OF_DATA = (15.0, 1.0, 4.0)
STARVED = (18.5, 1.0, 0.5)
SLOW_HOST = (0.2, 19.5, 0.3)


def times(*rows) -> np.ndarray:
    return np.array(rows)


def test_process_that_never_waits_for_its_device_is_the_straggler():
    process, seconds = straggler(times(WELL_FED, WELL_FED, STARVED, WELL_FED))
    assert (process, seconds) == (2, pytest.approx(18.3))
    process, seconds = straggler(times(SLOW_HOST, WELL_FED, WELL_FED))
    assert (process, seconds) == (0, pytest.approx(18.5))


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
    assert straggler(times(*rows)) is None


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(number: int, now=None) -> Bottlenecks:
    return Bottlenecks([f"host{i // 2}" for i in range(number)], now=now or Time())


def test_input_above_a_tenth_is_warned_of_with_its_share():
    (text,) = watch(1).warnings(times(SHORT_OF_DATA), 100)
    assert text == "Process 0 on host0 waits for data in 75% of the time of 100 steps"
    assert watch(1).warnings(times((1.9, 1.0, 17.1)), 100) == []
    assert len(watch(1).warnings(times((2.1, 1.0, 16.9)), 100)) == 1


def test_straggler_is_named_with_its_host_and_its_reason():
    text, _ = watch(4).warnings(times(WELL_FED, WELL_FED, STARVED, WELL_FED), 100)
    assert text == (
        "Process 2 on host1 holds the others up for 0.183 s of each step: it waits for its data"
    )
    straggles, starves = watch(3).warnings(times(SLOW_HOST, WELL_FED, SHORT_OF_DATA), 100)
    assert straggles.startswith("Process 0 on host0 holds")
    assert straggles.endswith("its host is slow")
    assert starves.startswith("Process 2 on host1 waits for data")


def test_same_warning_comes_again_only_after_minutes_and_another_at_once():
    now = Time()
    watched = watch(2, now)
    assert watched.warnings(times(WELL_FED, STARVED), 100)
    now.now = 200
    assert not watched.warnings(times(WELL_FED, STARVED), 100)
    assert watched.warnings(times(STARVED, WELL_FED), 100)
    now.now = 301
    assert watched.warnings(times(WELL_FED, STARVED), 100)


def test_short_windows_are_judged_together():
    watched = watch(1)
    fifth = times(SHORT_OF_DATA) / 5  # 4 s
    assert [len(watched.warnings(fifth, 20)) for _ in range(3)] == [0, 0, 1]
    watched = watch(1)
    assert not watched.warnings(times((2.0, 0.0, 0.0)), 1)  # a hiccup
    assert not watched.warnings(times((0.0, 0.2, 19.8)), 100)


def test_hosts_have_their_names():
    assert host_names() == [socket.gethostname()[:64]]
