"""How long a step must take at least, from what it does and the rates of the chips.

Nothing here is measured: compute, memory, the interconnect and the network between islands each
take their amount of work over their peak rate. docs/planning.md has the assumptions.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from darl_jax.planning.hlo_collectives import Collective
from darl_jax.runtime.chips import Chip, Interconnect

# Passes over the array, in units of one all-gather of it.
_PASSES = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a device stands. An island is what the interconnect joins: a slice, or a board."""

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
        """What takes the longest."""
        return max(self.parts, key=self.parts.__getitem__)

    @property
    def step(self) -> float:
        """All four at the same time, in the shadow of the slowest."""
        return max(self.parts.values())

    @property
    def step_without_overlap(self) -> float:
        """One after the other: the pessimistic end."""
        return sum(self.parts.values())

    @property
    def compute_fraction(self) -> float:
        """The model's FLOPs at peak over the step: the utilization that cannot be exceeded."""
        return self.model_compute / self.step


def collective_seconds(
    collective: Collective, group: Sequence[Place], chip: Chip, torus: tuple[int, ...]
) -> tuple[float, float]:
    """(interconnect, network) seconds of all executions of a collective in a step.

    Inside an island an all-gather takes (j - 1) / j of the array over the rate at which a device
    receives; between m islands each device brings 1 / j of what its island lacks, (m - 1) / m of
    the array, and shares it there. A reduce-scatter is the same backwards, an all-reduce both.

    Args:
      collective: what is sent.
      group: the devices that take part in one of its groups.
      chip: their rates.
      torus: devices along each axis of an island's torus; empty for a switch.

    Raises:
      ValueError: the kind of collective is unknown.
    """
    islands = {place.island for place in group}
    size = len(group)
    inside, m = size / len(islands), len(islands)
    if size == 1:
        return 0.0, 0.0
    total = float(collective.bytes * collective.count)
    rate = min(
        group_rate([place for place in group if place.island == island], chip.interconnect, torus)
        for island in islands
    )
    gather = total * (inside - 1) / inside / rate if inside > 1 else 0.0
    network = total * (m - 1) / m / (inside * chip.network_bytes_per_second)
    if collective.kind in _PASSES:
        passes = _PASSES[collective.kind]
        return passes * gather, passes * network
    if collective.kind == "all-to-all":
        # Each device sends its own part, 1 / size of the array, of which on a torus a quarter of
        # what an all-gather sends crosses the middle.
        return gather / (4 if torus else size), network / m
    if collective.kind == "collective-permute":
        one = total / (rate if not torus else chip.interconnect.link_bytes_per_second)
        return (one, 0.0) if m == 1 else (0.0, total / chip.network_bytes_per_second)
    raise ValueError(f"collective {collective.kind!r} is unknown")


def group_rate(group: Sequence[Place], interconnect: Interconnect, torus: tuple[int, ...]) -> float:
    """Bytes per second that each device of a group in one island receives in an all-gather.

    On a torus each physical axis that the group runs along adds its links: both where it closes to
    a ring, one where it is a line, shared with the groups in between where the group takes every
    n-th device only. A group that is no box has one link.
    """
    link = interconnect.link_bytes_per_second
    if not torus:
        return interconnect.bytes_per_second
    rate, box = 0.0, 1
    for axis, length in enumerate(torus):
        along = sorted({place.coords[axis] for place in group})
        box *= len(along)
        if len(along) == 1:
            continue
        strides = {b - a for a, b in itertools.pairwise(along)}
        stride = max(strides)
        wraps = interconnect.wrap_multiple and length % interconnect.wrap_multiple == 0
        ring = wraps and len(strides) == 1 and len(along) * stride == length
        rate += link * (2 if ring else 1) / stride
    # Two devices of one chip stand at the same place.
    return rate if rate and box == len({place.coords for place in group}) else link


def compute_seconds(flops: float, chip: Chip) -> float:
    """FLOPs of a device at the dense bfloat16 peak."""
    return flops / chip.peak_bf16_flops


def hbm_seconds(traffic: float, chip: Chip) -> float:
    """Bytes that a device reads and writes at the memory's full rate."""
    return traffic / chip.hbm_bytes_per_second


def islands(number: int, interconnect: Interconnect) -> list[Place]:
    """Where GPUs stand that are numbered board after board."""
    return [Place(index // interconnect.max_devices) for index in range(number)]


def torus_shape(places: Sequence[Place]) -> tuple[int, ...]:
    """Devices along each axis of an island's torus."""
    return tuple(max(along) + 1 for along in zip(*(place.coords for place in places), strict=True))


def gib(number: float) -> str:
    """Bytes as GiB, for tables."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.2f} MiB"


def whole_steps(epochs: float, train_images: int, batch_size: int) -> int:
    """Steps of a run, as the program rounds them."""
    return max(1, round(epochs * train_images / batch_size))
