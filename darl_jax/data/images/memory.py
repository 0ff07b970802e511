"""A whole split, decoded once and held in memory, for small images."""

import copy
import time
from collections.abc import Iterator
from concurrent import futures
from typing import overload

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32, Int64, UInt8

from darl_jax.data.images.decode import HostImage
from darl_jax.data.images.records import Decoded, decode_records
from darl_jax.data.sources.tfds import Dataset, Source, Subset

_BLOCK = 256
_THREADS = 4
_SECONDS_BETWEEN_LINES = 5.0


class MemorySource:
    """A split's pixels and labels as arrays.

    Attributes:
      dataset: the dataset's name or the folder, for messages.
      split: the split as the config wrote it.
      num_classes: how many labels there are, 0 for none.
      images: planar pixels (n, channel, height, width).
      labels: class numbers, -1 for none.
      bad: which records could not be decoded; they hold their substitutes.
    """

    def __init__(self, source: Dataset, channels: int, *, skip_bad: bool):
        """Decodes every record, with a line of progress now and then.

        Raises:
          ValueError: the images differ in size.
          BadRecordError: a record cannot be decoded and `skip_bad` is off.
        """
        self.dataset, self.split = source.dataset, source.split
        self.num_classes = source.num_classes
        self._fingerprint = source.fingerprint()
        self.images: UInt8[np.ndarray, "n channel height width"]
        self.labels: Int32[np.ndarray, " n"] = np.zeros(len(source), np.int32)
        self.bad: Bool[np.ndarray, " n"] = np.zeros(len(source), bool)
        for start, block in _decode_blocks(source, channels, skip_bad):
            if start == 0:
                shape = block[0].pixels.shape
                self.images = np.empty((len(source), channels, *shape[:2]), np.uint8)
            for number, decoded in enumerate(block, start):
                if decoded.pixels.shape != shape:
                    raise ValueError(
                        f"data.in_memory=True holds images of one size, and in {self.dataset}, "
                        f"split '{self.split}', record 0 is {_size(shape)} and record {number} "
                        f"is {_size(decoded.pixels.shape)}: set data.in_memory=False"
                    )
                self.images[number] = decoded.pixels.transpose(2, 0, 1)
                self.labels[number] = decoded.label
                self.bad[number] = decoded.replaced
        logging.info(
            "%s, split '%s': %d images of %s in memory, %.0f MB",
            self.dataset,
            self.split,
            len(self),
            _size(shape),
            self.images.nbytes / 1e6,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Int64[np.ndarray, " m"]) -> "MemorySource":
        """Some of the records, in this order."""
        subset = copy.copy(self)
        subset.images, subset.labels = self.images[index], self.labels[index]
        subset.bad = self.bad[index]
        return subset

    def fingerprint(self) -> str:
        """That of the source that the pixels were read from."""
        return self._fingerprint


@overload
def some_records(source: MemorySource, number: int) -> MemorySource: ...
@overload
def some_records(source: Source, number: int) -> Source | Subset: ...
def some_records(source: Source | MemorySource, number: int) -> Source | MemorySource | Subset:
    """`number` records spread over a source, or all, in its order; the same ones in every run.

    They are the first of a fixed permutation, so that fewer are a part of more.
    """
    if len(source) <= number:
        return source
    index = np.sort(np.random.default_rng(0).permutation(len(source))[:number])
    if not isinstance(source, MemorySource):
        return Subset(source, index)
    return source.subset(index)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _decode_blocks(
    source: Dataset, channels: int, skip_bad: bool
) -> Iterator[tuple[int, list[Decoded]]]:
    def pixels(_: int, image: HostImage) -> UInt8[np.ndarray, "height width channel"]:
        return image.pixels(channels)

    def decode(start: int) -> tuple[int, list[Decoded]]:
        index: Int64[np.ndarray, " n"] = np.arange(start, min(start + _BLOCK, len(source)))
        return start, decode_records(source, index, pixels, skip_bad=skip_bad)

    began = said = time.monotonic()
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        try:
            for start, block in pool.map(decode, range(0, len(source), _BLOCK)):
                yield start, block
                now = time.monotonic()
                if now - said > _SECONDS_BETWEEN_LINES:
                    said = now
                    done = start + len(block)
                    logging.info(
                        "Decoding %s, split '%s', into memory: %d of %d images, %.0f s to go",
                        source.dataset,
                        source.split,
                        done,
                        len(source),
                        (now - began) / done * (len(source) - done),
                    )
        finally:
            pool.shutdown(cancel_futures=True)
