import dataclasses

import pytest

from darl_jax.planning.collectives import Collective
from darl_jax.planning.roofline import (
    Position,
    Roofline,
    collective_seconds,
    group_rate,
    islands,
    torus_shape,
)
from darl_jax.runtime.chips import Chip, Interconnect

# Rates that make the arithmetic easy: links of 10 B/s, a network of 1 B/s.
TORUS = Interconnect(4, 10.0, 2, 4, 256)
SWITCH = Interconnect(1, 100.0, 0, 0, 4)


def chip(interconnect: Interconnect) -> Chip:
    return Chip("c", (), 1e3, 2**30, 2**30, 1e2, interconnect, 1.0)


def row(length: int, stride: int = 1, island: int = 0) -> list[Position]:
    return [Position(island, (0, i * stride)) for i in range(length)]


def test_the_slowest_resource_is_the_bound_and_without_overlap_they_add_up():
    times = Roofline(model_compute=2.0, compute=3.0, hbm=4.0, interconnect=1.0, network=0.5)
    assert (times.bound, times.step, times.step_without_overlap) == ("HBM", 4.0, 8.5)
    assert times.compute_fraction == 0.5
    slow = dataclasses.replace(times, network=9.0)
    assert (slow.bound, slow.step) == ("network", 9.0)


@pytest.mark.parametrize(
    ("group", "torus", "rate"),
    [
        (row(4), (4, 4), 20.0),  # a ring: in from both sides
        (row(4), (4, 8), 10.0),  # half of an axis is a line
        (row(4, stride=2), (4, 8), 10.0),  # a ring whose links are shared with the odd ones
        (row(2, stride=4), (4, 8), 5.0),  # a ring of two, four links apart
        (row(3), (4, 3), 10.0),  # an axis that does not wrap
        ([Position(0, (x, y)) for x in range(4) for y in range(4)], (4, 4), 40.0),
        ([Position(0, (x, y)) for x in range(2) for y in range(4)], (4, 4), 30.0),
        ([Position(0, (0, 0)), Position(0, (1, 1))], (4, 4), 10.0),  # no box
        ([Position(0, (0, i)) for i in range(4) for _ in range(2)], (4, 4), 20.0),  # two a chip
    ],
)
def test_rate_of_a_group_follows_from_where_it_lies_on_the_torus(group, torus, rate):
    assert group_rate(group, TORUS, torus) == rate


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        ("all-gather", 0.75 * 80 / 20),
        ("reduce-scatter", 0.75 * 80 / 20),
        ("all-reduce", 2 * 0.75 * 80 / 20),
        ("all-to-all", 0.75 * 80 / 20 / 4),
        ("collective-permute", 80 / 10),
    ],
)
def test_a_ring_of_four_takes_the_textbook_time(kind, seconds):
    sent = Collective(kind, ("data",), 40, 2, 4)
    assert collective_seconds(sent, row(4), chip(TORUS), (4, 4)) == (pytest.approx(seconds), 0.0)


def test_between_islands_every_device_carries_its_share_over_the_network():
    sent = Collective("all-reduce", ("data",), 120, 1, 8)
    group = row(4) + row(4, island=1)
    inside, network = collective_seconds(sent, group, chip(TORUS), (4, 4))
    assert inside == pytest.approx(2 * 120 * 3 / 4 / 20)
    # Each of 4 devices holds 30 bytes of sums; half of an all-reduce's two passes leave the island.
    assert network == pytest.approx(2 * 30 / 2 / 1.0)
    # One device of each island: all goes over the network.
    alone = collective_seconds(
        sent, [Position(0, (0, 0)), Position(1, (0, 0))], chip(TORUS), (4, 4)
    )
    assert alone == (0.0, pytest.approx(120.0))


def test_gpus_stand_on_boards_behind_a_switch():
    positions = islands(8, SWITCH)
    assert [each.island for each in positions] == [0] * 4 + [1] * 4
    assert torus_shape(positions) == ()
    sent = Collective("all-gather", ("fsdp",), 400, 1, 4)
    assert collective_seconds(sent, positions[:4], chip(SWITCH), ()) == (pytest.approx(3.0), 0.0)
    alone = Collective("all-reduce", (), 8, 1, 1)
    assert collective_seconds(alone, row(1), chip(TORUS), (4, 4)) == (0.0, 0.0)
