"""Batches of pixels; which record goes where is a pure function of (seed, step).

The stream of training rows is endless: epoch after epoch, each a pseudo-random permutation of all
records. The global batch at step t is rows [t B, (t+1) B) of it, and process p of n takes the p-th
n-th of those. Nothing is remembered between steps, so a run resumes at any step at once, with any
number of processes. Crops and flips (Table 8) are keyed by (seed, epoch, record).
"""

import os
from typing import NamedTuple

from absl import logging

from darl_jax.data.chunks import Batch as Batch
from darl_jax.data.chunks import Layout, MakeChunk
from darl_jax.data.images.config import DataConfig as DataConfig
from darl_jax.data.images.memory import MemorySource
from darl_jax.data.loading import Batches
from darl_jax.data.makers import EvalByRecord, EvalInMemory, TrainByRecord, TrainInMemory
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.data.sources.folder import FolderSource
from darl_jax.data.sources.tfds import Dataset, Source, TfdsSource

# How many rows one call makes: enough to spread its overhead, few enough to stay in the cache
# (in memory) and to keep a worker's share of a batch small (one by one).
_ROWS_IN_MEMORY = 256
_ROWS_BY_RECORD = 32


class Sources(NamedTuple):
    """The splits that a config names, both opened and looked at.

    Attributes:
      train: the records to learn from.
      validation: the records held out.
    """

    train: Dataset | MemorySource
    validation: Dataset | MemorySource


def open_sources(config: DataConfig) -> Sources:
    """Opens both splits, decodes the first record of each, and holds them in memory if asked to.

    Raises:
      ValueError: a key names something that is not there; the message names the key.
      BadRecordError: a first record cannot be decoded, or with `in_memory` any record.
    """
    train = open_source(config, config.train_split, "train_split")
    validation = open_source(config, config.validation_split, "validation_split")
    if train.num_classes != validation.num_classes:
        raise ValueError(
            f"data.train_split='{train.split}' has {train.num_classes} classes and "
            f"data.validation_split='{validation.split}' has {validation.num_classes}"
        )
    if not config.in_memory:
        return Sources(train, validation)
    skip_bad = config.on_bad_record == "skip"
    return Sources(
        MemorySource(train, config.channels, skip_bad=skip_bad),
        MemorySource(validation, config.channels, skip_bad=skip_bad),
    )


def open_source(config: DataConfig, split: str, split_key: str) -> Dataset:
    """Opens one split and decodes its first record.

    Args:
      config: which dataset.
      split: which part of it, in TFDS's split syntax.
      split_key: the config key that `split` comes from, for messages.

    Raises:
      ValueError: something that the config names is not there; the message names the key.
      BadRecordError: the first record cannot be decoded.
    """
    source: Dataset
    if config.source == "tfds":
        skip_bad = config.on_bad_record == "skip"
        source = TfdsSource(
            config.name, split, config.data_dir, split_key=split_key, skip_bad=skip_bad
        )
    elif config.source == "folder":
        source = FolderSource(config.data_dir, split, split_key=split_key)
    else:
        source = DigitsSource(split, split_key=split_key)
    first = EvalByRecord(source, config, Layout(1, 0, 1, 1))(0)
    logging.info(
        "data.%s: %s, split '%s', %d records, %d classes; the first one decodes%s",
        split_key,
        source.dataset,
        source.split,
        len(source),
        source.num_classes,
        "" if first["mask"][0] else " not",
    )
    return source


def train_batches(
    source: Source | MemorySource,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """An endless iterator over this process's part of the training batches, from a step on.

    Args:
      source: the records.
      config: how they are cropped, and by how many workers.
      batch_size: of the global batch, all processes together.
      seed: of the order and the augmentation.
      start_step: the first batch is that of this step.
      process_index: which process this is.
      process_count: of how many.

    Raises:
      ValueError: `batch_size` does not divide by `process_count`.
      BadRecordError: from the iterator, when a record cannot be decoded.
    """
    make_chunk: MakeChunk
    if isinstance(source, MemorySource):
        layout = Layout(batch_size, process_index, process_count, _ROWS_IN_MEMORY)
        make_chunk = TrainInMemory(source, config, layout, seed)
    else:
        layout = Layout(batch_size, process_index, process_count, _ROWS_BY_RECORD)
        make_chunk = TrainByRecord(source, config, layout, seed)
    return Batches(
        make_chunk,
        layout,
        start_step=start_step,
        num_steps=None,
        num_workers=_workers(source, config),
        row_bytes=config.image_size**2 * config.channels,
        timeout_seconds=config.worker_timeout_seconds,
    )


def eval_batches(
    source: Source | MemorySource,
    config: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """One pass over all records in their own order, each exactly once over all processes.

    All processes yield the same number of batches. Rows past the end, and with
    on_bad_record="skip" records that cannot be decoded, are black with `mask` False.

    Args:
      source: the records.
      config: how they are cropped, and by how many workers.
      batch_size: of the global batch, all processes together.
      process_index: which process this is.
      process_count: of how many.

    Raises:
      ValueError: `batch_size` does not divide by `process_count`.
      BadRecordError: from the iterator, when a record cannot be decoded.
    """
    make_chunk: MakeChunk
    if isinstance(source, MemorySource):
        layout = Layout(batch_size, process_index, process_count, _ROWS_IN_MEMORY)
        make_chunk = EvalInMemory(source, config, layout)
    else:
        layout = Layout(batch_size, process_index, process_count, _ROWS_BY_RECORD)
        make_chunk = EvalByRecord(source, config, layout)
    return Batches(
        make_chunk,
        layout,
        start_step=0,
        num_steps=-(-len(source) // batch_size),
        num_workers=_workers(source, config),
        row_bytes=config.image_size**2 * config.channels,
        timeout_seconds=config.worker_timeout_seconds,
    )


def _workers(source: Source | MemorySource, config: DataConfig) -> int:
    if isinstance(source, MemorySource):
        return 0
    return min(config.num_workers, usable_cores())


def usable_cores() -> int:
    """Cores that this process may use: fewer than there are where a scheduler has cut them up."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
