"""Memory of a compiled step on each device."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jaxtyping import PyTree

from darl_jax.planning.tables import gib
from darl_jax.planning.topology import Topology
from darl_jax.training.state import TrainState

_ADVICE = (
    "Raise config.mesh.fsdp or config.accumulation_steps, set config.model.remat to 'dots' or "
    "'full', or lower config.batch_size; --sweep searches for what fits"
)


class DoesNotFitError(MemoryError):
    """Step that needs more memory than a chip has."""


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
    limit: int | None  # usable by a program on the chip; None without a chip


def shard_bytes(tree: PyTree) -> int:
    """Returns the bytes on one device of a tree of shapes with shardings."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def read_memory(compiled: jax.stages.Compiled, state: TrainState, topology: Topology) -> Memory:
    """Returns the compiler's account of a step's memory.

    Raises:
      DoesNotFitError: the peak exceeds what a program may use on the chip.
    """
    stats: Any = compiled.memory_analysis()
    parameters, optimizer = shard_bytes(state.params), shard_bytes(state.opt_state)
    # The new state takes the memory of the old one.
    returned = stats.output_size_in_bytes - stats.alias_size_in_bytes
    program = stats.generated_code_size_in_bytes
    peak = stats.argument_size_in_bytes + returned + stats.temp_size_in_bytes + program
    limit = topology.chip.usable_hbm_bytes if topology.chip else None
    if limit is not None and peak > limit:
        raise DoesNotFitError(
            f"the step needs {gib(peak)} on each device and a chip of {topology.name} has "
            f"{gib(limit)} for it. {_ADVICE}"
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
def advice_on_refusal() -> Iterator[None]:
    """Turns the compiler's refusal of a step that is too large into one line.

    Raises:
      DoesNotFitError: the compiler found no room.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2].rstrip(".")
        raise DoesNotFitError(f"the step does not fit: {first}. {_ADVICE}") from error
