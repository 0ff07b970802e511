"""Batches of examples, whose records are a pure function of (seed, step).

The stream of training rows is endless: epoch after epoch, each a pseudo-random permutation of all
records. The global batch at step t is rows [t B, (t+1) B) of it, and process p of n takes the p-th
n-th of those. Nothing is remembered between steps, so a run resumes at any step at once, with any
number of processes.
"""

import math
import os

import numpy as np
from jaxtyping import Int64

from darl_jax.data.base import DataConfig, Split
from darl_jax.data.batches import BatchRows, EvalChunks, TrainChunks, rows_to_records
from darl_jax.data.loader import CHUNKS_IN_FLIGHT, Batches

# Rows that one call makes: enough to spread its overhead, few enough to stay in the cache (in
# memory) and to keep a worker's share of a batch small (record by record).
_ROWS_IN_MEMORY = 256
_ROWS_BY_RECORD = 32
# A thread reads so many before worker processes have started.
_FEW_RECORDS = 1024
_SHARED_MEMORY = "/dev/shm"


def train_batches(
    split: Split,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """An endless iterator over this process's part of the training batches.

    It begins after the batches of `start_step` steps. `batch_size` is that of all processes
    together, among which it must divide.
    """
    rows = BatchRows(batch_size, process_index, process_count, _rows_at_once(split))
    return Batches(
        TrainChunks(split, rows, seed),
        rows,
        start_step=start_step,
        num_steps=None,
        num_workers=_workers(split, config),
        timeout_seconds=config.worker_timeout_seconds,
    )


def eval_batches(
    split: Split,
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """One pass over all records in their own order, each exactly once over all processes.

    All processes yield the same number of batches. Rows past the end are zero with `mask` False.
    Arguments as those of `train_batches`.
    """
    rows = BatchRows(batch_size, process_index, process_count, _rows_at_once(split))
    empty = {name: np.zeros((0, *x.shape), x.dtype) for name, x in config.features.items()}
    return Batches(
        EvalChunks(split, rows, empty),
        rows,
        start_step=0,
        num_steps=-(-len(split) // batch_size),
        num_workers=_workers(split, config, len(split) // process_count),
        timeout_seconds=config.worker_timeout_seconds,
    )


def records_of_step(
    split: Split, *, batch_size: int, seed: int, step: int
) -> Int64[np.ndarray, " row"]:
    """Record numbers of a training step, counted from 1, in the order of the global batch."""
    rows = np.arange((step - 1) * batch_size, step * batch_size, dtype=np.int64)
    return rows_to_records(rows, len(split), seed)[1]


def check_shared_memory(
    training: tuple[Split, DataConfig], *evaluations: tuple[Split, DataConfig]
) -> None:
    """Checks that shared memory holds the chunks of training's and one evaluation's workers.

    Where it runs out a worker dies of SIGBUS without a word, and containers often have 64 MB.

    Raises:
      ValueError: it has too little.
    """

    def shared_bytes(split: Split, config: DataConfig, records: int | None) -> int:
        row = sum(math.prod(x.shape) * x.dtype.itemsize for x in config.features.values())
        chunks = _workers(split, config, records) * CHUNKS_IN_FLIGHT
        return chunks * _rows_at_once(split) * row

    needed = shared_bytes(*training, None)
    needed += max((shared_bytes(*each, len(each[0])) for each in evaluations), default=0)
    if not needed or not os.path.isdir(_SHARED_MEMORY):
        return
    state = os.statvfs(_SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    if needed > free:
        raise ValueError(
            f"data.num_workers={_workers(*training)} needs {needed / 1e6:.0f} MB of shared "
            f"memory, for training and evaluation at once, and {_SHARED_MEMORY} has "
            f"{free / 1e6:.0f} MB free: give the container more (docker run --shm-size=2g), or set "
            "fewer workers; 0 needs none"
        )


def _rows_at_once(split: Split) -> int:
    return _ROWS_IN_MEMORY if split.in_memory else _ROWS_BY_RECORD


def _workers(split: Split, config: DataConfig, records: int | None = None) -> int:
    """Worker processes for a pass over so many records, None for no end."""
    if split.in_memory or (records is not None and records <= _FEW_RECORDS):
        return 0
    return min(config.num_workers, usable_cores())


def usable_cores() -> int:
    """Cores that this process may use; a scheduler may leave it fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
