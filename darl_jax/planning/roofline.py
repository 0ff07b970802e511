"""Least duration of a step, from its work and the rates of the chips.

Nothing here is measured: compute, memory, the interconnect and the network between islands each
take their amount of work over their peak rate. docs/planning.md has the assumptions.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from darl_jax.planning.collectives import Collective
from darl_jax.runtime.chips import Chip, Interconnect

# Passes over the array, in units of one all-gather of it.
_PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}


@dataclasses.dataclass(frozen=True)
class Position:
    """Position of a device. An island is what the interconnect joins: a slice, or a board."""

    island: int
    coords: tuple[int, ...] = ()  # on the island's torus; empty where a switch joins all with all


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on each of the four resources, on every device alike."""

    model_compute: float  # the model's own FLOPs, nothing computed twice
    compute: float  # the FLOPs that the compiled step executes
    hbm: float
    interconnect: float
    network: float

    @property
    def parts(self) -> dict[str, float]:
        """The seconds by the name of the bound."""
        return {
            "compute": self.compute,
            "HBM": self.hbm,
            "interconnect": self.interconnect,
            "network": self.network,
        }

    @property
    def bound(self) -> str:
        """Name of the slowest resource."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def step(self) -> float:
        """Seconds with perfect overlap: those of the slowest resource."""
        return max(self.parts.values())

    @property
    def step_without_overlap(self) -> float:
        """Seconds without any overlap."""
        return sum(self.parts.values())

    @property
    def compute_fraction(self) -> float:
        """Model FLOPs at peak over the step: the bound on model FLOPs utilization."""
        return self.model_compute / self.step


def collective_seconds(
    collective: Collective, group: Sequence[Position], chip: Chip, torus: tuple[int, ...]
) -> tuple[float, float]:
    """Returns (interconnect, network) seconds of all executions of a collective in a step.

    Inside an island an all-gather takes (j - 1) / j of the array over the rate at which a device
    receives; between m islands each device brings 1 / j of what its island lacks, (m - 1) / m of
    the array, and shares it there. A reduce-scatter is the same backwards, an all-reduce both.

    `group` are the positions of one group's devices; `torus` counts the devices along each axis of
    an island's torus, and is empty for a switch.

    Raises:
      ValueError: the kind of collective is unknown.
    """
    by_island: dict[int, list[Position]] = {}
    for position in group:
        by_island.setdefault(position.island, []).append(position)
    size, m = len(group), len(by_island)
    inside = size / m
    if size == 1:
        return 0.0, 0.0
    total = float(collective.bytes * collective.count)
    rate = min(group_rate(each, chip.interconnect, torus) for each in by_island.values())
    gather = total * (inside - 1) / inside / rate if inside > 1 else 0.0
    network = total * (m - 1) / m / (inside * chip.network_bytes_per_second)
    if passes := _PASSES.get(collective.kind):
        return passes * gather, passes * network
    if collective.kind == "all-to-all":
        # Each device sends its own part, 1 / size of the array, of which on a torus a quarter of
        # what an all-gather sends crosses the middle.
        return gather / (4 if torus else size), network / m
    if collective.kind == "collective-permute":
        one = total / (rate if not torus else chip.interconnect.link_bytes_per_second)
        return (one, 0.0) if m == 1 else (0.0, total / chip.network_bytes_per_second)
    raise ValueError(f"collective {collective.kind!r} is unknown")


def group_rate(
    group: Sequence[Position], interconnect: Interconnect, torus: tuple[int, ...]
) -> float:
    """Returns the bytes/s that each device of a group in one island receives in an all-gather.

    On a torus each physical axis that the group runs along adds its links: both where it closes to
    a ring, one where it is a line, shared with the groups in between where the group takes every
    n-th device only. A group that is no box has one link.
    """
    link = interconnect.link_bytes_per_second
    if not torus:
        return interconnect.bytes_per_second
    rate, box = 0.0, 1
    for axis, length in enumerate(torus):
        along = sorted({position.coords[axis] for position in group})
        box *= len(along)
        if len(along) == 1:
            continue
        strides = {b - a for a, b in itertools.pairwise(along)}
        stride = max(strides)
        wraps = interconnect.wrap_multiple and length % interconnect.wrap_multiple == 0
        ring = wraps and len(strides) == 1 and len(along) * stride == length
        rate += link * (2 if ring else 1) / stride
    # Two devices of one chip stand at the same position.
    return rate if rate and box == len({position.coords for position in group}) else link


def islands(number: int, interconnect: Interconnect) -> list[Position]:
    """Returns the positions of GPUs that are numbered board after board."""
    return [Position(index // interconnect.max_devices) for index in range(number)]


def torus_shape(positions: Sequence[Position]) -> tuple[int, ...]:
    """Returns the number of devices along each axis of an island's torus."""
    return tuple(max(along) + 1 for along in zip(*(each.coords for each in positions), strict=True))
