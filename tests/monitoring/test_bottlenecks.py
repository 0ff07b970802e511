"""A bottleneck is named with its process, and not over and over."""

import socket

import numpy as np
import pytest

from darl_jax.monitoring.bottlenecks import Bottlenecks, host_names

# Seconds of 100 steps that took 20 s: waiting for input, the host's own, waiting for the device.
WELL_FED = (0.2, 1.0, 18.8)
SHORT_OF_DATA = (15.0, 1.0, 4.0)
STARVED = (18.5, 1.0, 0.5)
SLOW_HOST = (0.2, 19.5, 0.3)


def times(*rows) -> np.ndarray:
    return np.array(rows)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watch(number: int, now=None) -> Bottlenecks:
    return Bottlenecks([f"host{i // 2}" for i in range(number)], now=now or Time())


HOLDS = "holds the others up for"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([SHORT_OF_DATA], ["Process 0 on host0 waits for data in 75% of the time of 100 steps"]),
        ([(1.9, 1.0, 17.1)], []),  # under a tenth
        (
            [WELL_FED, WELL_FED, STARVED, WELL_FED],
            [
                f"Process 2 on host1 {HOLDS} 0.183 s of each step: it waits for its data",
                "Process 2 on host1 waits for data in 92% of the time of 100 steps",
            ],
        ),
        (
            [SLOW_HOST, WELL_FED, WELL_FED],
            [f"Process 0 on host0 {HOLDS} 0.185 s of each step: its host is slow"],
        ),
        ([WELL_FED, WELL_FED], []),
        # Neither is slower than the other; then its device is still the slower one.
        ([STARVED, STARVED], ["Process 0 on host0 waits for data in 92% of the time of 100 steps"]),
        ([WELL_FED, (1.0, 7.0, 12.0)], []),
    ],
)
def test_input_above_a_tenth_and_the_one_that_others_wait_for_are_named(rows, expected):
    assert watch(len(rows)).warnings(times(*rows), 100) == expected


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
