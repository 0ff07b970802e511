"""A whole split of small images, decoded once and held in memory."""

from collections.abc import Iterator
from concurrent import futures

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32, Int64, UInt8

from darl_jax.data import order
from darl_jax.data.base import Batch
from darl_jax.data.images import decode, randaugment, resample
from darl_jax.data.images.split import Decoded, ImageSplit

_BLOCK = 256
_THREADS = 4
_LOGGED = 64 * _BLOCK  # images between two lines of progress


class MemorySplit:
    """A split's pixels and labels as arrays; examples are made by the batch.

    Attributes:
      images: planar pixels.
      bad: records that cannot be decoded; they hold their substitutes.
    """

    def __init__(self, by_record: ImageSplit):
        """Decodes every record, with a line of progress now and then.

        Raises:
          ValueError: the images differ in size.
          BadRecordError: a record cannot be decoded, and on_bad_record is "error".
        """
        self.config = by_record.config
        self._by_record = by_record
        self.dataset, self.split = by_record.dataset, by_record.split
        self.class_names, self.in_memory = by_record.class_names, True
        self.images: UInt8[np.ndarray, "n channel height width"]
        self._labels: Int32[np.ndarray, " n"] = np.zeros(len(by_record), np.int32)
        self.bad: Bool[np.ndarray, " n"] = np.zeros(len(by_record), bool)
        for start, block in _decode_blocks(by_record):
            if start == 0:
                shape = block[0].pixels.shape
                self.images = np.empty((len(self), shape[2], *shape[:2]), np.uint8)
            for number, decoded in enumerate(block, start):
                if decoded.pixels.shape != shape:
                    raise ValueError(
                        f"data.in_memory=True holds images of one size, and in {self.dataset}, "
                        f"split '{self.split}', record 0 is {_size(shape)} and record {number} "
                        f"is {_size(decoded.pixels.shape)}: set data.in_memory=False"
                    )
                self.images[number] = decoded.pixels.transpose(2, 0, 1)
                self._labels[number] = decoded.label
                self.bad[number] = decoded.replaced
        text = "%s, split '%s': %d images of %s in memory, %.0f MB"
        size, megabytes = _size(shape), self.images.nbytes / 1e6
        logging.info(text, self.dataset, self.split, len(self), size, megabytes)

    def __len__(self) -> int:
        return len(self._by_record)

    def fingerprint(self) -> str:
        """A hash of the records and their order."""
        return self._by_record.fingerprint()

    def describe(self, index: Int64[np.ndarray, " n"]) -> str:
        """Names the records and their files."""
        return self._by_record.describe(index)

    def labels(self, index: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Class numbers of records; -1 for none and for records that cannot be decoded."""
        return np.where(self.bad[index], -1, self._labels[index]).astype(np.int32)

    def train_examples(
        self, index: Int64[np.ndarray, " n"], epoch: Int64[np.ndarray, " n"], seed: int
    ) -> Batch:
        """Crops, resizes, mirrors and distorts images, with `ImageSplit`'s random numbers."""
        config, (height, width) = self.config, self.images.shape[2:]
        uniforms = order.uniforms(seed, epoch, index, decode.UNIFORMS_PER_RECORD)
        heights, widths = np.full(len(index), height), np.full(len(index), width)
        boxes = decode.random_resized_crops(
            uniforms, heights, widths, config.crop_scale, config.crop_ratio
        )
        pixels = resample.resize_crops(self.images[index], boxes, config.image_size)
        if config.flip:
            flips = decode.random_flips(uniforms)
            pixels[flips] = pixels[flips][..., ::-1]
        images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        for row, operations in enumerate(randaugment.draw(config.randaugment, seed, epoch, index)):
            if operations:
                images[row] = randaugment.apply(images[row], operations, config.mean)
        return {"image": images, "label": self._labels[index], "replaced": self.bad[index]}

    def eval_examples(self, index: Int64[np.ndarray, " n"]) -> Batch:
        """Crops and resizes images; records that cannot be decoded are black and masked."""
        height, width = self.images.shape[2:]
        box = decode.central_box(height, width, self.config.eval_crop)
        pixels = resample.resize_box(self.images[index], box, self.config.image_size)
        images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        images[self.bad[index]] = 0
        return {"image": images, "label": self.labels(index), "mask": ~self.bad[index]}


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _decode_blocks(split: ImageSplit) -> Iterator[tuple[int, list[Decoded]]]:
    def decode_block(start: int) -> list[Decoded]:
        index = np.arange(start, min(start + _BLOCK, len(split)))
        return split.decode_records(index, lambda image: image.pixels(split.config.channels))

    starts = range(0, len(split), _BLOCK)
    text = "Decoding %s, split '%s', into memory: %d of %d images"
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        try:
            for start, block in zip(starts, pool.map(decode_block, starts), strict=True):
                yield start, block
                if start and start % _LOGGED == 0:
                    logging.info(text, split.dataset, split.split, start + len(block), len(split))
        finally:
            pool.shutdown(cancel_futures=True)
