"""Records to pixels, and what happens to the ones that cannot be decoded."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int64, UInt8

from darl_jax.data import order
from darl_jax.data.images.decode import HostImage, UndecodableImageError
from darl_jax.data.sources.tfds import BadRecordError, Record, Source

# Where this many substitutes in a row are bad too, the dataset is what is wrong.
_REPLACEMENT_TRIES = 100

# (place in the list of records asked for, image) -> its pixels.
Decode = Callable[[int, HostImage], UInt8[np.ndarray, "height width channel"]]


class Decoded(NamedTuple):
    """One example's pixels.

    Attributes:
      pixels: uint8; of the substitute where `replaced`.
      label: class number, -1 for none; of the substitute where `replaced`.
      replaced: the record itself could not be decoded.
    """

    pixels: UInt8[np.ndarray, "height width channel"]
    label: int
    replaced: bool


def decode_records(
    source: Source, index: Int64[np.ndarray, " n"], decode: Decode, *, skip_bad: bool
) -> list[Decoded]:
    """Reads and decodes records.

    A bad record's substitute is drawn by a hash of the bad one's number, so that it is the same in
    every epoch, in every process and after a restart; it is cropped with the random numbers of
    the record that it stands for.

    Args:
      source: where the records are.
      index: their numbers.
      decode: makes pixels of an image.
      skip_bad: replace a record that cannot be decoded, and log it; otherwise raise.

    Raises:
      BadRecordError: a record cannot be decoded and `skip_bad` is off, or none of its first 100
        substitutes can be decoded either.
    """
    result = []
    for place, (number, record) in enumerate(
        zip(index, _read(source, index, skip_bad), strict=True)
    ):
        try:
            result.append(_decode(source, int(number), record, place, decode, replaced=False))
        except BadRecordError as error:
            if not skip_bad:
                raise
            result.append(_replace(source, error, place, decode))
    return result


def _read(
    source: Source, index: Int64[np.ndarray, " n"], skip_bad: bool
) -> Sequence[Record | BadRecordError]:
    try:
        return source.read(index.tolist())
    except BadRecordError:
        if not skip_bad:
            raise
    records: list[Record | BadRecordError] = []
    for number in index.tolist():
        try:
            records += source.read([number])
        except BadRecordError as error:
            records.append(error)
    return records


def _decode(
    source: Source,
    number: int,
    record: Record | BadRecordError,
    place: int,
    decode: Decode,
    *,
    replaced: bool,
) -> Decoded:
    if isinstance(record, BadRecordError):
        raise record
    try:
        pixels = decode(place, HostImage(record.image))
    except UndecodableImageError as error:
        raise BadRecordError(
            source.dataset, source.split, number, record.name, str(error)
        ) from error
    return Decoded(pixels, record.label, replaced)


def _replace(source: Source, error: BadRecordError, place: int, decode: Decode) -> Decoded:
    logging.log_first_n(logging.WARNING, "Replaced: %s", 20, error)
    numbers = order.hash_of(order.STREAM_REPLACE, error.index, np.arange(_REPLACEMENT_TRIES))
    for number in (numbers % np.uint64(len(source))).tolist():
        try:
            record = source.read([number])[0]
            return _decode(source, number, record, place, decode, replaced=True)
        except BadRecordError as another:
            logging.log_first_n(logging.WARNING, "Bad as a substitute too: %s", 20, another)
    raise error
