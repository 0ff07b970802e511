"""Batches of pixels; which record goes where is a pure function of (seed, step).

The stream of training rows is endless: epoch after epoch, each a pseudo-random permutation of all
records. The global batch at step t is rows [t B, (t+1) B) of it, and process p of n takes the p-th
n-th of those. Nothing is remembered between steps, so a run resumes at any step at once, with any
number of processes. Crops and flips (Table 8) are keyed by (seed, epoch, record).
"""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float64, Int64

from darl_jax.data import images, order, resample
from darl_jax.data.decoding import decode_records
from darl_jax.data.folder import FolderSource
from darl_jax.data.images import HostImage
from darl_jax.data.loading import Batch, Batches, Layout
from darl_jax.data.memory import MemorySource
from darl_jax.data.sources import DigitsSource, Source, TfdsSource

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# How many rows one call makes: enough to spread its overhead, few enough to stay in the cache
# (in memory) and to keep a worker's share of a batch small (one by one).
_ROWS_IN_MEMORY = 256
_ROWS_BY_RECORD = 32


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they become the model's input.

    Attributes:
      source: "tfds", "folder" or "digits".
      name: the TFDS dataset, for example "imagenet2012"; may carry a config and a version,
        "cifar10:3.0.2".
      data_dir: where TFDS prepared it, or the folder of images; local or a bucket.
      train_split: in TFDS's split syntax, slices too, for every source.
      validation_split: the same for the images that are held out.
      image_size: rows and columns of what the model sees.
      channels: 3 for RGB, 1 for luminance.
      mean: of each channel, in units of [0, 1]; the objective standardises with it.
      std: of each channel, in units of [0, 1].
      crop_scale: smallest and largest area of the random resized crop; MAE's (0.2, 1).
      crop_ratio: smallest and largest aspect ratio of it.
      flip: mirror half of the training images.
      eval_crop: in evaluation, the central square has this fraction of the short side.
      in_memory: decode once and hold all pixels; for small images of one size.
      num_workers: processes that read and decode, in each process of the run, but no more than
        the machine has cores; 0 for threads in this one. Images in memory need none.
      on_bad_record: "error" stops at a record that cannot be decoded; "skip" replaces it, and in
        evaluation leaves it out.
    """

    source: str = "tfds"
    name: str = ""
    data_dir: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    image_size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    eval_crop: float = 0.875
    in_memory: bool = False
    num_workers: int = 8
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        _check_choice("source", self.source, ("tfds", "folder", "digits"))
        _check_choice("on_bad_record", self.on_bad_record, ("error", "skip"))
        _check_choice("channels", self.channels, (1, 3))
        if self.image_size < 1:
            raise ValueError(f"data.image_size is {self.image_size}; it must be at least 1")
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers is {self.num_workers}; it must be 0 or more")
        if not 0 < self.eval_crop <= 1:
            raise ValueError(f"data.eval_crop is {self.eval_crop}; it must be in (0, 1]")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"data.crop_scale is {self.crop_scale}; it must be (smallest, largest) in (0, 1]"
            )
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(
                f"data.crop_ratio is {self.crop_ratio}; it must be (smallest, largest) above 0"
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"data.{key} has {len(values)} values and data.channels is {self.channels}; "
                    "they must agree"
                )
        if min(self.std) <= 0:
            raise ValueError(f"data.std is {self.std}; it must be positive")


def _check_choice(key: str, value: str | int, choices: tuple[str | int, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"data.{key} is {value!r}; it must be one of {', '.join(map(repr, choices))}"
        )


class Sources(NamedTuple):
    """The splits that a config names, both opened and looked at.

    Attributes:
      train: the records to learn from.
      validation: the records held out.
    """

    train: Source | MemorySource
    validation: Source | MemorySource


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


def open_source(config: DataConfig, split: str, split_key: str) -> Source:
    """Opens one split and decodes its first record.

    Args:
      config: which dataset.
      split: which part of it, in TFDS's split syntax.
      split_key: the config key that `split` comes from, for messages.

    Raises:
      ValueError: something that the config names is not there; the message names the key.
      BadRecordError: the first record cannot be decoded.
    """
    source: Source
    if config.source == "tfds":
        source = TfdsSource(config.name, split, config.data_dir, split_key=split_key)
    elif config.source == "folder":
        source = FolderSource(config.data_dir, split, split_key=split_key)
    else:
        source = DigitsSource(split, split_key=split_key)
    first = _EvalByRecord(source, config, Layout(1, 0, 1, 1))(0)
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
    make_chunk: Callable[[int], Batch]
    if isinstance(source, MemorySource):
        layout = Layout(batch_size, process_index, process_count, _ROWS_IN_MEMORY)
        make_chunk = _TrainInMemory(source, config, layout, seed)
    else:
        layout = Layout(batch_size, process_index, process_count, _ROWS_BY_RECORD)
        make_chunk = _TrainByRecord(source, config, layout, seed)
    return Batches(
        make_chunk,
        layout,
        start_step=start_step,
        num_steps=None,
        num_workers=_workers(source, config),
        row_bytes=config.image_size**2 * config.channels,
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
    make_chunk: Callable[[int], Batch]
    if isinstance(source, MemorySource):
        layout = Layout(batch_size, process_index, process_count, _ROWS_IN_MEMORY)
        make_chunk = _EvalInMemory(source, config, layout)
    else:
        layout = Layout(batch_size, process_index, process_count, _ROWS_BY_RECORD)
        make_chunk = _EvalByRecord(source, config, layout)
    return Batches(
        make_chunk,
        layout,
        start_step=0,
        num_steps=-(-len(source) // batch_size),
        num_workers=_workers(source, config),
        row_bytes=config.image_size**2 * config.channels,
    )


def _workers(source: Source | MemorySource, config: DataConfig) -> int:
    if isinstance(source, MemorySource):
        return 0
    return min(config.num_workers, os.cpu_count() or 1)


def rows_to_records(
    rows: Int64[np.ndarray, " n"], length: int, seed: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(epoch, record number) of rows of the endless training stream over `length` records."""
    epoch, position = np.divmod(rows, length)
    return epoch, order.permute(position, length, seed, epoch)


@dataclasses.dataclass(frozen=True)
class _TrainByRecord:
    source: Source
    config: DataConfig
    layout: Layout
    seed: int

    def __call__(self, element: int) -> Batch:
        rows = self.layout.rows(element)
        epoch, index = rows_to_records(rows, len(self.source), self.seed)
        uniforms = order.uniforms(self.seed, epoch, index, images.UNIFORMS_PER_RECORD)
        flips = images.random_flips(uniforms)

        def augment(place: int, image: HostImage) -> np.ndarray:
            crop = _crops(self.config, uniforms[place : place + 1], image.height, image.width)[0]
            box = (float(crop[0]), float(crop[1]), float(crop[2]), float(crop[3]))
            pixels = image.render(box, self.config.image_size, self.config.channels)
            return pixels[:, ::-1] if self.config.flip and flips[place] else pixels

        skip_bad = self.config.on_bad_record == "skip"
        decoded = decode_records(self.source, index, augment, skip_bad=skip_bad)
        return {
            "image": np.stack([d.pixels for d in decoded]),
            "label": np.array([d.label for d in decoded], np.int32),
            "index": index,
            "mask": np.ones(len(rows), bool),
            "replaced": np.array([d.replaced for d in decoded], bool),
        }


@dataclasses.dataclass(frozen=True)
class _TrainInMemory:
    source: MemorySource
    config: DataConfig
    layout: Layout
    seed: int

    def __call__(self, element: int) -> Batch:
        rows = self.layout.rows(element)
        epoch, index = rows_to_records(rows, len(self.source), self.seed)
        uniforms = order.uniforms(self.seed, epoch, index, images.UNIFORMS_PER_RECORD)
        height, width = self.source.images.shape[2:]
        boxes = _crops(self.config, uniforms, height, width)
        pixels = resample.resize_crops(self.source.images[index], boxes, self.config.image_size)
        if self.config.flip:
            flips = images.random_flips(uniforms)
            pixels[flips] = pixels[flips][..., ::-1]
        return {
            "image": np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)),
            "label": self.source.labels[index],
            "index": index,
            "mask": np.ones(len(rows), bool),
            "replaced": self.source.bad[index],
        }


def _crops(
    config: DataConfig, uniforms: Float64[np.ndarray, "n draws"], height: int, width: int
) -> Int64[np.ndarray, "n 4"]:
    heights = np.full(len(uniforms), height, np.int64)
    widths = np.full(len(uniforms), width, np.int64)
    return images.random_resized_crops(
        uniforms, heights, widths, config.crop_scale, config.crop_ratio
    )


def _empty_chunk(rows: Int64[np.ndarray, " n"], length: int, config: DataConfig) -> Batch:
    shape = (len(rows), config.image_size, config.image_size, config.channels)
    return {
        "image": np.zeros(shape, np.uint8),
        "label": np.full(len(rows), -1, np.int32),
        "index": np.where(rows < length, rows, -1),
        "mask": np.zeros(len(rows), bool),
        "replaced": np.zeros(len(rows), bool),
    }


@dataclasses.dataclass(frozen=True)
class _EvalByRecord:
    source: Source
    config: DataConfig
    layout: Layout

    def __call__(self, element: int) -> Batch:
        rows = self.layout.rows(element)
        chunk = _empty_chunk(rows, len(self.source), self.config)
        index = rows[rows < len(self.source)]

        def center(_: int, image: HostImage) -> np.ndarray:
            box = images.central_box(image.height, image.width, self.config.eval_crop)
            return image.render(box, self.config.image_size, self.config.channels)

        skip_bad = self.config.on_bad_record == "skip"
        for i, decoded in enumerate(decode_records(self.source, index, center, skip_bad=skip_bad)):
            chunk["mask"][i], chunk["replaced"][i] = not decoded.replaced, decoded.replaced
            if not decoded.replaced:
                chunk["image"][i], chunk["label"][i] = decoded.pixels, decoded.label
        return chunk


@dataclasses.dataclass(frozen=True)
class _EvalInMemory:
    source: MemorySource
    config: DataConfig
    layout: Layout

    def __call__(self, element: int) -> Batch:
        rows = self.layout.rows(element)
        chunk = _empty_chunk(rows, len(self.source), self.config)
        index = rows[rows < len(self.source)]
        height, width = self.source.images.shape[2:]
        box = images.central_box(height, width, self.config.eval_crop)
        pixels = resample.resize_box(self.source.images[index], box, self.config.image_size)
        good = ~self.source.bad[index]
        kept = np.flatnonzero(good)
        chunk["image"][kept] = pixels[good].transpose(0, 2, 3, 1)
        chunk["label"][kept] = self.source.labels[index][good]
        chunk["mask"][kept] = True
        chunk["replaced"][: len(index)] = ~good
        return chunk
