"""Compressed files, version 1: a header, the streams of the items, and checksums.

    magic     4  8D "ARD"
    version   1  1
    flags     1  bit 0 fast mode; bit 1 one item; bits 2-3 array, image, text or audio; bit 4 a
                 digest for each item, otherwise one for all
    model     8  first bytes of the model's hash (identity.py)
    profile   4  hash of what decides float32 results, in fast mode; otherwise 0
    seed         of the order
    steps        network calls in each stage
    policy    4  hash of the start ranks (order.py)
    lanes        rows of the network's batch
    guard     1  how often the guard was halved (tables.GUARDS)
    items        number of items; absent with flag 1
    source       length, and what the original is beyond its values (originals.py)
    table        for each item the number of its words, its dither (1), and its digest (8) with
                 flag 4; without, one digest (8) after them
    CRC-32    4  of all before it
    payload      32-bit words of the streams, one after another
    CRC-32    4  of all before it

Little-endian; where no number of bytes stands, an unsigned LEB128 integer.
"""

import dataclasses
import enum
import hashlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt32

MAGIC = b"\x8dARD"
VERSION = 1

Words = UInt32[np.ndarray, "..."]  # a stream

_FAST, _ONE, _KIND_SHIFT, _ITEM_DIGESTS = 1, 2, 2, 16
_KNOWN_FLAGS = _FAST | _ONE | 3 << _KIND_SHIFT | _ITEM_DIGESTS
_WORD, _CRC, _DIGEST = 4, 4, 8
_OTHERS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file", b"\x93NUMPY": "a NumPy array", b"RIFF": "a RIFF file, such as WAV",
    b"\xfd7zXZ": "an xz file", b"(\xb5/\xfd": "a Zstandard file", b"BZh": "a bzip2 file",
}  # fmt: skip


class FileError(ValueError):
    """A compressed file that cannot be read, or not whole."""


class Kind(enum.IntEnum):
    """Kinds of originals."""

    ARRAY = 0
    IMAGE = 1
    TEXT = 2
    AUDIO = 3


@dataclasses.dataclass(frozen=True)
class Item:
    """An item's line of the table."""

    words: int
    dither: int
    digest: bytes = b""  # of 8 bytes; empty where the file has one for all items


@dataclasses.dataclass(frozen=True)
class Header:
    """All of a file but the streams; the docstring of this module tells of the fields."""

    kind: Kind
    fast: bool
    model: bytes
    profile: bytes
    seed: int
    steps: int
    policy: bytes
    lanes: int
    halvings: int
    source: bytes
    items: tuple[Item, ...]
    digest: bytes = b""  # of all items, where they have none of their own


@dataclasses.dataclass(frozen=True)
class Content:
    """A file as it was read.

    Attributes:
      streams: words of each item; None where the file is too short to have them, which only
        `parse(..., salvage=True)` lets pass.
      damage: the reason why the file is not whole, empty if it is.
    """

    header: Header
    streams: tuple[Words | None, ...]
    header_bytes: int
    damage: str = ""


def digest_of(values: Int32[np.ndarray, "*shape"]) -> bytes:
    """BLAKE2b in 8 bytes over shape, type and values of a decoded item."""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    digest.update(repr((tuple(values.shape), "<i4")).encode())
    digest.update(np.ascontiguousarray(values, "<i4").tobytes())
    return digest.digest()


def digest_of_all(digests: Sequence[bytes]) -> bytes:
    """BLAKE2b in 8 bytes over the digests of all items."""
    return hashlib.blake2b(b"".join(digests), digest_size=_DIGEST).digest()


def uvarint(number: int) -> bytes:
    """Unsigned LEB128. Raises ValueError for a number that is negative or needs over 64 bits."""
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is no unsigned 64-bit integer")
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def serialize(header: Header, streams: Sequence[Words]) -> bytes:
    """The bytes of a file."""
    one, own = len(header.items) == 1, not header.digest
    flags = header.fast * _FAST | one * _ONE | header.kind << _KIND_SHIFT | own * _ITEM_DIGESTS
    parts = [
        MAGIC, bytes([VERSION, flags]), header.model, header.profile, uvarint(header.seed),
        uvarint(header.steps), header.policy, uvarint(header.lanes), bytes([header.halvings]),
        b"" if one else uvarint(len(header.items)), uvarint(len(header.source)), header.source,
    ]  # fmt: skip
    for item in header.items:
        parts.append(uvarint(item.words) + bytes([item.dither]) + item.digest)
    head = b"".join(parts) + header.digest
    head += struct.pack("<I", zlib.crc32(head))
    body = head + b"".join(words.astype("<u4").tobytes() for words in streams)
    return body + struct.pack("<I", zlib.crc32(body))


class Reader:
    """Fields of a header, one after another; `at` is the number of bytes that are read.

    Raises:
      FileError: of each function, where a field goes beyond the end or is no integer.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data, self._name = data, name
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bytes that follow."""
        return len(self._data) - self.at

    def take(self, count: int, field: str) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise FileError(
                f"{self._name} is truncated or damaged: its field '{field}' needs {count} bytes, "
                f"and {self.left} follow"
            )
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, field: str) -> int:
        """The next LEB128 integer."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1, field)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if byte > 0x7F or value >= 1 << 64:
            raise FileError(f"{self._name} is damaged: its field '{field}' is no 64-bit integer")
        return value


def parse(data: bytes, name: str, *, salvage: bool = False) -> Content:
    """Reads a file and checks it.

    Args:
      data: the whole file.
      name: the file's, for messages.
      salvage: lets a damaged payload pass, and reads the streams that are there.

    Raises:
      FileError: it is of another kind or version, truncated, or damaged; the message says which
        part. Sizes are checked before anything is allocated.
    """
    _check_magic(data, name)
    header, size = _parse_header(data, name)
    payload = _WORD * sum(item.words for item in header.items)
    missing = size + payload + _CRC - len(data)
    damage = ""
    if missing > 0:
        whole = _whole_items(header.items, len(data) - size)
        damage = (
            f"{name} is truncated: {missing} of {size + payload + _CRC} bytes are missing, and "
            f"{whole} of {len(header.items)} items are whole"
        )
    elif missing < 0:
        damage = f"{name} is damaged: {-missing} bytes follow its end"
    elif zlib.crc32(data[:-_CRC]) != struct.unpack("<I", data[-_CRC:])[0]:
        damage = f"{name} is damaged: its payload has another checksum than was written"
    if damage and not salvage:
        raise FileError(
            damage + ("; --salvage decodes the items that are whole" if header.items else "")
        )
    streams: list[Words | None] = []
    at = size
    for item in header.items:
        end = at + _WORD * item.words
        stream = np.frombuffer(data[at:end], "<u4").astype(np.uint32) if end <= len(data) else None
        streams.append(stream)
        at = end
    return Content(header, tuple(streams), size, damage)


def _check_magic(data: bytes, name: str) -> None:
    if data and MAGIC.startswith(data[: len(MAGIC)]) and len(data) <= len(MAGIC) + 1:
        raise FileError(f"{name} is truncated: it has {len(data)} bytes")
    if not data.startswith(MAGIC):
        kinds = (what for magic, what in _OTHERS.items() if data.startswith(magic))
        found = next(kinds, "of another kind") if data else "empty"
        raise FileError(f"{name} is {found}, and no file that darl_jax.compress wrote")
    if data[len(MAGIC)] != VERSION:
        raise FileError(
            f"{name} is damaged, or of version {data[len(MAGIC)]}: this program reads version "
            f"{VERSION}"
        )


def _parse_header(data: bytes, name: str) -> tuple[Header, int]:
    """The header and its length with the checksum."""
    reader = Reader(data, name)
    reader.take(len(MAGIC) + 1, "version")
    flags = reader.take(1, "flags")[0]
    model, profile = reader.take(8, "model"), reader.take(4, "profile")
    seed, steps = reader.number("seed"), reader.number("steps")
    policy, lanes = reader.take(4, "policy"), reader.number("lanes")
    halvings = reader.take(1, "guard")[0]
    count = 1 if flags & _ONE else reader.number("items")
    source = reader.take(reader.number("source"), "source")
    own = bool(flags & _ITEM_DIGESTS)
    least = 2 + own * _DIGEST  # bytes of an item
    if count * least > reader.left:
        raise FileError(
            f"{name} is truncated or damaged: its table of {count} items needs at least "
            f"{count * least} bytes, and {reader.left} follow"
        )
    items = []
    for _ in range(count):
        words, dither = reader.number("table"), reader.take(1, "table")[0]
        items.append(Item(words, dither, reader.take(_DIGEST, "table") if own else b""))
    digest = b"" if own else reader.take(_DIGEST, "digest")
    end = reader.at
    if zlib.crc32(data[:end]) != struct.unpack("<I", reader.take(_CRC, "checksum"))[0]:
        raise FileError(f"{name} is damaged: its header has another checksum than was written")
    if flags & ~_KNOWN_FLAGS:
        raise FileError(f"{name} has flags ({flags:#x}) that this program does not know")
    header = Header(
        kind=Kind(flags >> _KIND_SHIFT & 3), fast=bool(flags & _FAST), model=model,
        profile=profile, seed=seed, steps=steps, policy=policy, lanes=lanes, halvings=halvings,
        source=source, items=tuple(items), digest=digest,
    )  # fmt: skip
    return header, reader.at


def _whole_items(items: Sequence[Item], left: int) -> int:
    """Number of items whose words are all there."""
    ends = np.cumsum([item.words for item in items]) * _WORD
    return int((ends <= left).sum())
