"""What a compiled step takes of a chip's memory, and what to say where that is too much."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jaxtyping import PyTree

from darl_jax.planning import roofline
from darl_jax.planning.topology import Topology
from darl_jax.training.state import TrainState

_ADVICE = (
    "Raise config.mesh.fsdp or config.accumulation_steps, set config.model.remat to 'dots' or "
    "'full', or lower config.batch_size; --sweep looks for what fits"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFitError(MemoryError):
    """A step that needs more memory than a chip has."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    parameters: int
    optimizer: int
    batch: int
    gradients: int  # of the temporaries: float32, laid out as the parameters
    temporaries: int
    program: int
    peak: int
    limit: int | None  # what a program may use of a chip; None where no chip is meant


def shard_bytes(tree: PyTree) -> int:
    """What the leaves of a tree of shapes with shardings take on one device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def read_memory(compiled: jax.stages.Compiled, state: TrainState, topology: Topology) -> Memory:
    """The compiler's account of a step's memory.

    Raises:
      DoesNotFitError: the peak is above what the chip has for a program.
    """
    stats: Any = compiled.memory_analysis()
    parameters, optimizer = shard_bytes(state.params), shard_bytes(state.opt_state)
    # The new state takes the memory of the old.
    returned = stats.output_size_in_bytes - stats.alias_size_in_bytes
    program = stats.generated_code_size_in_bytes
    peak = stats.argument_size_in_bytes + returned + stats.temp_size_in_bytes + program
    limit = topology.chip.usable_hbm_bytes if topology.chip else None
    if limit is not None and peak > limit:
        raise DoesNotFitError(
            f"the step needs {roofline.gib(peak)} on each device and {topology.name}'s chips have "
            f"{roofline.gib(limit)} for it. {_ADVICE}"
        )
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        batch=stats.argument_size_in_bytes - parameters - optimizer,
        gradients=parameters,
        temporaries=stats.temp_size_in_bytes + returned,
        program=program,
        peak=peak,
        limit=limit,
    )


@contextlib.contextmanager
def advice_where_it_does_not_fit() -> Iterator[None]:
    """Turns the compiler's refusal of a step that does not fit into one line.

    Raises:
      DoesNotFitError: it did.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(f"{refusal(str(error))}. {_ADVICE}") from error


def refusal(message: str) -> str:
    """The two numbers of the compiler's message, or its first line where it has none."""
    first = message.splitlines()[0]
    numbers = re.findall(r"\b(\d+(?:\.\d+)?)([KMGT]?)\b", first.partition("RESOURCE_EXHAUSTED")[2])
    if len(numbers) < 2:
        return f"the compiler finds no room: {first}"
    used, limit = (float(number) * _UNITS[unit] for number, unit in numbers[:2])
    what = "the step's temporaries alone need" if "temporaries" in first else "the step needs"
    return (
        f"{what} {roofline.gib(used)} on each device, and the compiler has {roofline.gib(limit)} "
        "to give"
    )
