"""Chunks of training and evaluation rows, record by record or from memory.

Each maker is a pure function of a chunk's number, so that any process can make any chunk at any
time. Crops and flips (Table 8) are keyed by (seed, epoch, record), and so is RandAugment.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from darl_jax.data import order
from darl_jax.data.chunks import Batch, Layout
from darl_jax.data.images import decode as images
from darl_jax.data.images import randaugment, resample
from darl_jax.data.images.config import DataConfig
from darl_jax.data.images.decode import HostImage
from darl_jax.data.images.memory import MemorySource
from darl_jax.data.images.records import decode_records
from darl_jax.data.sources.tfds import Dataset, Source, as_names

# How many files a message names.
_NAMED_FILES = 8


def rows_to_records(
    rows: Int64[np.ndarray, " n"], length: int, seed: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(epoch, record number) of rows of the endless training stream over `length` records."""
    epoch, position = np.divmod(rows, length)
    return epoch, order.permute(position, length, seed, epoch)


def _describe(source: Source | MemorySource, index: Int64[np.ndarray, " n"]) -> str:
    files = source.files(index.tolist()) if isinstance(source, Dataset) else []
    numbers = ", ".join(map(str, index.tolist()))
    return (
        f"{source.dataset}, split '{source.split}', records {numbers}"
        f"{f' ({as_names(files, _NAMED_FILES)})' if files else ''}"
    )


@dataclasses.dataclass(frozen=True)
class TrainByRecord:
    """Training rows, each record read and decoded when it is its turn."""

    source: Source
    config: DataConfig
    layout: Layout
    seed: int

    def describe(self, element: int) -> str:
        """Which records the chunk holds."""
        rows = self.layout.rows(element)
        return _describe(self.source, rows_to_records(rows, len(self.source), self.seed)[1])

    def __call__(self, element: int) -> Batch:
        """Makes the chunk."""
        rows = self.layout.rows(element)
        epoch, index = rows_to_records(rows, len(self.source), self.seed)
        uniforms = order.uniforms(self.seed, epoch, index, images.UNIFORMS_PER_RECORD)
        flips = images.random_flips(uniforms)
        operations = randaugment.draw(self.config.randaugment, self.seed, epoch, index)

        def augment(place: int, image: HostImage) -> np.ndarray:
            crop = _crops(self.config, uniforms[place : place + 1], image.height, image.width)[0]
            box = (float(crop[0]), float(crop[1]), float(crop[2]), float(crop[3]))
            pixels = _render(image, box, self.config)
            if self.config.flip and flips[place]:
                pixels = pixels[:, ::-1]
            return randaugment.apply(pixels, operations[place], self.config.mean)

        skip_bad = self.config.on_bad_record == "skip"
        decoded = decode_records(self.source, index, augment, skip_bad=skip_bad)
        return {
            "image": _stacked([d.pixels for d in decoded]),
            "label": np.array([d.label for d in decoded], np.int32),
            "index": index,
            "mask": np.ones(len(rows), bool),
            "replaced": np.array([d.replaced for d in decoded], bool),
        }


@dataclasses.dataclass(frozen=True)
class TrainInMemory:
    """Training rows of a split that is held in memory."""

    source: MemorySource
    config: DataConfig
    layout: Layout
    seed: int

    def describe(self, element: int) -> str:
        """Which records the chunk holds."""
        rows = self.layout.rows(element)
        return _describe(self.source, rows_to_records(rows, len(self.source), self.seed)[1])

    def __call__(self, element: int) -> Batch:
        """Makes the chunk."""
        rows = self.layout.rows(element)
        epoch, index = rows_to_records(rows, len(self.source), self.seed)
        uniforms = order.uniforms(self.seed, epoch, index, images.UNIFORMS_PER_RECORD)
        height, width = self.source.images.shape[2:]
        boxes = _crops(self.config, uniforms, height, width)
        pixels = resample.resize_crops(self.source.images[index], boxes, self.config.image_size)
        if self.config.flip:
            flips = images.random_flips(uniforms)
            pixels[flips] = pixels[flips][..., ::-1]
        batch = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        operations = randaugment.draw(self.config.randaugment, self.seed, epoch, index)
        for place in (place for place, chosen in enumerate(operations) if chosen):
            batch[place] = randaugment.apply(batch[place], operations[place], self.config.mean)
        return {
            "image": batch,
            "label": self.source.labels[index],
            "index": index,
            "mask": np.ones(len(rows), bool),
            "replaced": self.source.bad[index],
        }


def _stacked(pixels: Sequence[np.ndarray]) -> np.ndarray:
    result = np.empty((len(pixels), *pixels[0].shape), np.uint8)
    for row, image in zip(result, pixels, strict=True):
        # NumPy copies a mirrored picture four times as fast by channel as by pixel.
        for channel in range(image.shape[-1]):
            row[..., channel] = image[..., channel]
    return result


def _render(image: HostImage, box: images.Box, config: DataConfig) -> np.ndarray:
    return image.render(box, config.image_size, config.channels, config.resizer)


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
class EvalByRecord:
    """Rows in the records' own order, each record read and decoded; padded at the end."""

    source: Source
    config: DataConfig
    layout: Layout

    def describe(self, element: int) -> str:
        """Which records the chunk holds."""
        rows = self.layout.rows(element)
        return _describe(self.source, rows[rows < len(self.source)])

    def __call__(self, element: int) -> Batch:
        """Makes the chunk."""
        rows = self.layout.rows(element)
        chunk = _empty_chunk(rows, len(self.source), self.config)
        index = rows[rows < len(self.source)]

        def center(_: int, image: HostImage) -> np.ndarray:
            box = images.central_box(image.height, image.width, self.config.eval_crop)
            return _render(image, box, self.config)

        skip_bad = self.config.on_bad_record == "skip"
        for i, decoded in enumerate(decode_records(self.source, index, center, skip_bad=skip_bad)):
            chunk["mask"][i], chunk["replaced"][i] = not decoded.replaced, decoded.replaced
            if not decoded.replaced:
                chunk["image"][i], chunk["label"][i] = decoded.pixels, decoded.label
        return chunk


@dataclasses.dataclass(frozen=True)
class EvalInMemory:
    """Rows in the records' own order from a split in memory; padded at the end."""

    source: MemorySource
    config: DataConfig
    layout: Layout

    def describe(self, element: int) -> str:
        """Which records the chunk holds."""
        rows = self.layout.rows(element)
        return _describe(self.source, rows[rows < len(self.source)])

    def __call__(self, element: int) -> Batch:
        """Makes the chunk."""
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
