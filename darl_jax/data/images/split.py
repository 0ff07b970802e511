"""A split of images, each read and decoded when it is its turn."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float64, Int32, Int64, UInt8

from darl_jax.data import order
from darl_jax.data.base import Batch
from darl_jax.data.images import decode, randaugment
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.decode import HostImage, UndecodableImageError
from darl_jax.data.sources.base import BadRecordError, Record, Source, as_names

# After this many bad substitutes in a row the dataset itself is broken.
_REPLACEMENT_TRIES = 100
_NAMED_FILES = 8
_ADVICE = "repair it, or set data.on_bad_record='skip'"

Pixels = UInt8[np.ndarray, "height width channel"]


class Decoded(NamedTuple):
    """One record's pixels and label; those of a substitute where it cannot be decoded itself."""

    pixels: Pixels
    label: int  # -1 for none
    replaced: bool


class ImageSplit:
    """Records of a source as examples."""

    def __init__(self, source: Source, config: ImagesConfig):
        self.source, self.config = source, config
        self.dataset, self.split = source.dataset, source.split
        self.class_names, self.in_memory = source.class_names, False

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        """A hash of the records and their order."""
        return self.source.fingerprint()

    def train_examples(
        self, index: Int64[np.ndarray, " n"], epoch: Int64[np.ndarray, " n"], seed: int
    ) -> Batch:
        """Reads, crops, resizes, mirrors and distorts images, and stacks them.

        Crop and flip (Table 8) and RandAugment are keyed by (seed, epoch, record). A bad record
        raises BadRecordError, or has a substitute.
        """
        uniforms = order.uniforms(seed, epoch, index, decode.UNIFORMS_PER_RECORD)
        operations = randaugment.draw(self.config.randaugment, seed, epoch, index)
        decoded = [
            self._decode(
                int(number),
                record,
                functools.partial(augment, self.config, uniforms[row : row + 1], operations[row]),
            )
            for row, (number, record) in enumerate(zip(index, self._read(index), strict=True))
        ]
        return {
            "image": _stacked([d.pixels for d in decoded]),
            "label": np.array([d.label for d in decoded], np.int32),
            "replaced": np.array([d.replaced for d in decoded], bool),
        }

    def eval_examples(self, index: Int64[np.ndarray, " n"]) -> Batch:
        """Reads, crops and resizes images; bad records raise, or are black and masked."""
        decoded = self.decode_records(index, functools.partial(central_crop, self.config))
        good = np.array([not d.replaced for d in decoded], bool)
        images = _stacked([d.pixels for d in decoded])
        images[~good] = 0
        labels = np.array([d.label for d in decoded], np.int32)
        return {"image": images, "label": np.where(good, labels, -1), "mask": good}

    def labels(self, index: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Class numbers of records, read and not decoded; -1 for none. Raises BadRecordError."""
        records = self._read(index)
        for record in records:
            if isinstance(record, BadRecordError):
                logging.log_first_n(logging.WARNING, "Without a label: %s", 20, record)
        return np.array(
            [-1 if isinstance(r, BadRecordError) else r.label for r in records], np.int32
        )

    def describe(self, index: Int64[np.ndarray, " n"]) -> str:
        """Names the records and their files."""
        files = self.source.files(index.tolist())
        numbers = ", ".join(map(str, index.tolist()))
        return (
            f"{self.dataset}, split '{self.split}', records {numbers}"
            f"{f' ({as_names(files, _NAMED_FILES)})' if files else ''}"
        )

    def decode_records(
        self, index: Int64[np.ndarray, " n"], render: Callable[[HostImage], Pixels]
    ) -> list[Decoded]:
        """Reads records and makes pixels of each; bad ones are replaced or raise."""
        records = zip(index.tolist(), self._read(index), strict=True)
        return [self._decode(number, record, render) for number, record in records]

    def _read(self, index: Int64[np.ndarray, " n"]) -> Sequence[Record | BadRecordError]:
        try:
            return self.source.read(index.tolist())
        except BadRecordError as error:
            if self.config.on_bad_record != "skip":
                raise error.advising(_ADVICE) from error
        records: list[Record | BadRecordError] = []
        for number in index.tolist():
            try:
                records += self.source.read([number])
            except BadRecordError as error:
                records.append(error)
        return records

    def _decode(
        self, number: int, record: Record | BadRecordError, render: Callable[[HostImage], Pixels]
    ) -> Decoded:
        try:
            return self._pixels(number, record, render, replaced=False)
        except BadRecordError as error:
            if self.config.on_bad_record != "skip":
                raise error.advising(_ADVICE) from error
            logging.log_first_n(logging.WARNING, "Replaced: %s", 20, error)
            return self._substitute(error, render)

    def _substitute(self, bad: BadRecordError, render: Callable[[HostImage], Pixels]) -> Decoded:
        """Decodes another record in place of a bad one, with the bad one's random numbers.

        It is drawn by a hash of the bad record's number, so that it is the same in every epoch, in
        every process and after a restart.
        """
        numbers = order.hash_of(order.STREAM_REPLACE, bad.index, np.arange(_REPLACEMENT_TRIES))
        for number in (numbers % np.uint64(len(self))).tolist():
            try:
                return self._pixels(number, self.source.read([number])[0], render, replaced=True)
            except BadRecordError as error:
                logging.log_first_n(logging.WARNING, "Bad as a substitute too: %s", 20, error)
        raise bad.advising(
            f"so are {_REPLACEMENT_TRIES} others in its place, so the dataset itself is damaged: "
            "repair it"
        )

    def _pixels(
        self,
        number: int,
        record: Record | BadRecordError,
        render: Callable[[HostImage], Pixels],
        *,
        replaced: bool,
    ) -> Decoded:
        if isinstance(record, BadRecordError):
            raise record
        try:
            return Decoded(render(HostImage(record.image)), record.label, replaced)
        except UndecodableImageError as error:
            raise BadRecordError(
                self.dataset, self.split, number, record.name, str(error)
            ) from error


def augment(
    config: ImagesConfig,
    uniforms: Float64[np.ndarray, "1 draws"],
    operations: Sequence[randaugment.Operation],
    image: HostImage,
) -> Pixels:
    """Crops and resizes at random, mirrors half of the images, then applies RandAugment."""
    height, width = np.array([image.height]), np.array([image.width])
    (box,) = decode.random_resized_crops(
        uniforms, height, width, config.crop_scale, config.crop_ratio
    ).tolist()
    left, top, right, bottom = map(float, box)
    pixels = image.render(
        (left, top, right, bottom), config.image_size, config.channels, config.resizer
    )
    if config.flip and decode.random_flips(uniforms)[0]:
        pixels = pixels[:, ::-1]
    return randaugment.apply(pixels, operations, config.mean)


def central_crop(config: ImagesConfig, image: HostImage) -> Pixels:
    """Crops the central square of evaluation and resizes it."""
    box = decode.central_box(image.height, image.width, config.eval_crop)
    return image.render(box, config.image_size, config.channels, config.resizer)


def _stacked(pixels: Sequence[Pixels]) -> UInt8[np.ndarray, "n height width channel"]:
    result = np.empty((len(pixels), *pixels[0].shape), np.uint8)
    for row, image in zip(result, pixels, strict=True):
        # NumPy copies a mirrored picture four times as fast by channel as by pixel.
        for channel in range(image.shape[-1]):
            row[..., channel] = image[..., channel]
    return result
