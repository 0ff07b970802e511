"""Files from items, and items from files."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool

from darl_jax.codec.file_format import (
    Content,
    FileError,
    Header,
    Item,
    Kind,
    Reader,
    digest_of,
    digest_of_all,
    serialize,
    uvarint,
)
from darl_jax.codec.model import CodecModel, Policy, profile, profile_hash
from darl_jax.codec.order import policy_hash
from darl_jax.codec.stream import Encoded, Layout, Values, Walk, decode, encode

_SHOWN = 10  # items that a message names


@dataclasses.dataclass(frozen=True)
class Settings:
    """Choices of the encoder, all of which the file holds.

    Attributes:
      steps: network calls in each stage.
      lanes: rows of the network's batch.
      fast: float32, for this machine alone.
      item_digests: 8 bytes for each item, so that each can be checked and salvaged by itself.
      explain: whether a file of the fast mode says in words which machine decodes it.
    """

    steps: int
    policy: Policy = "best"
    seed: int = 0
    lanes: int = 1
    fast: bool = False
    item_digests: bool = True
    explain: bool = False


@dataclasses.dataclass(frozen=True)
class Compressed:
    """A file, and what its bytes are for.

    Attributes:
      coded: positions that hold the original, of all items.
      table_bits: -log2 of the probabilities that the tables give to them.
    """

    data: bytes
    items: int
    coded: int
    payload_bytes: int
    table_bits: float

    def __str__(self) -> str:
        """Sizes in bits for each position, where there is any."""
        size = f"{len(self.data):,} bytes for {self.items:,} items"
        if not self.coded:
            return size
        file, payload = (8 * n / self.coded for n in (len(self.data), self.payload_bytes))
        return (
            f"{size}: {file:.4f} bits/dim, of which {payload:.4f} are the streams "
            f"({self.table_bits / self.coded:.4f} by the tables' entropy)"
        )


def compress(
    values: Values,
    layout: Layout,
    kind: Kind,
    source: bytes,
    model: CodecModel,
    settings: Settings,
    called: Callable[[], None] = lambda: None,
) -> Compressed:
    """Compresses items.

    Args:
      values: of the items, in row-major positions.
      layout: which of them hold the original.
      source: what the original is beyond them.
      called: is told of each network call.

    Raises:
      ValueError: as `stream.encode`, or of a number of steps that the model does not have.
    """
    starts = model.starts(settings.policy, settings.steps)
    walk = Walk(model.network, model.alternatives, settings.seed, starts, called)
    streams: list[Encoded] = []
    for first, count in groups(len(values), settings.lanes):
        rows = np.zeros((settings.lanes, values.shape[1]), np.int32)
        rows[:count] = values[first : first + count]
        encoded = encode(walk, rows, layout.rows(first, settings.lanes), guarded=not settings.fast)
        streams += encoded[:count]
    digests = [digest_of(item.reshape(model.shape)) for item in decoded_form(values, layout)]
    here = profile(settings.lanes) if settings.fast else ""
    header = Header(
        kind=kind,
        fast=settings.fast,
        model=model.hash[:8],
        profile=profile_hash(here) if here else bytes(4),
        seed=settings.seed,
        steps=settings.steps,
        policy=policy_hash(starts),
        lanes=settings.lanes,
        halvings=max((stream.halvings for stream in streams), default=0),
        source=(_explanation(here if settings.explain else "") if settings.fast else b"") + source,
        items=tuple(
            Item(len(stream.words), stream.dither, digest if settings.item_digests else b"")
            for stream, digest in zip(streams, digests, strict=True)
        ),
        digest=b"" if settings.item_digests else digest_of_all(digests),
    )
    return Compressed(
        data=serialize(header, [stream.words for stream in streams]),
        items=len(values),
        coded=int(layout.coded.sum()),
        payload_bytes=4 * sum(len(stream.words) for stream in streams),
        table_bits=sum((stream.bits for stream in streams), 0.0),
    )


def groups(items: int, lanes: int) -> Iterator[tuple[int, int]]:
    """First item and number of items of each batch."""
    for first in range(0, items, lanes):
        yield first, min(lanes, items - first)


def decoded_form(values: Values, layout: Layout) -> Values:
    """Items as they are decoded: what fills up has the values of its twins."""
    return np.take_along_axis(values, layout.twin, axis=1)


def rebuilt_walk(
    header: Header,
    name: str,
    model: CodecModel,
    called: Callable[[], None] = lambda: None,
    *,
    ignore_profile: bool = False,
) -> Walk:
    """The calls with which a file was written.

    Raises:
      FileError: another model wrote it, or losses that are not the checkpoint's, or, in the fast
        mode, another machine.
    """
    if header.model != model.hash[:8]:
        raise FileError(
            f"{name} was written with the model {header.model.hex()}, and --checkpoint is the "
            f"model {model.hash[:8].hex()}"
        )
    here = profile(header.lanes) if header.fast else ""
    if here and profile_hash(here) != header.profile and not ignore_profile:
        raise FileError(
            f"{name} was written in the fast mode, under the numerics {header.profile.hex()} "
            f"({split_source(header)[0] or 'not explained'}), and here they are "
            f"{profile_hash(here).hex()} ({here}); "
            "--ignore_profile tries all the same, and digests decide"
        )
    for policy in ("best", "even"):
        if not 1 <= header.steps <= model.positions:
            break
        starts = model.starts(policy, header.steps)
        if policy_hash(starts) == header.policy:
            return Walk(model.network, model.alternatives, header.seed, starts, called)
    raise FileError(
        f"{name} was written with a policy of {header.steps} calls a stage that is neither the "
        "even one nor what the losses in the checkpoint give: take the checkpoint of the same step"
    )


def _explanation(words: str) -> bytes:
    return uvarint(len(words.encode())) + words.encode()


def split_source(header: Header) -> tuple[str, bytes]:
    """The numerics in words, where a file of the fast mode has them, and the original's fields."""
    if not header.fast:
        return "", header.source
    reader = Reader(header.source, "the file's source")
    words = reader.take(reader.number("numerics"), "numerics")
    return words.decode(errors="replace"), header.source[reader.at :]


def decompress(
    content: Content, model: CodecModel, walk: Walk, layout: Layout, lanes: int
) -> tuple[Values, Bool[np.ndarray, " item"]]:
    """Decodes a file: its items, and which of them are as they were written.

    With one digest for all items they are right together. Wrong ones are zeros.
    """
    header = content.header
    values = np.zeros((len(header.items), model.positions), np.int32)
    right = np.zeros(len(header.items), bool)
    lanes = header.lanes if header.fast else lanes
    digests = []
    for first, count in groups(len(header.items), lanes):
        streams = [
            np.zeros(0, np.uint32) if words is None else words
            for words in content.streams[first : first + count]
        ] + [np.zeros(0, np.uint32)] * (lanes - count)
        items = header.items[first : first + count]
        dithers = [item.dither for item in items] + [0] * (lanes - count)
        found, ended = decode(walk, streams, dithers, layout.rows(first, lanes))
        values[first : first + count] = found[:count]
        for row, item in enumerate(items):
            digests.append(digest_of(found[row].reshape(model.shape)))
            whole = content.streams[first + row] is not None and ended[row]
            right[first + row] = whole and item.digest in (b"", digests[-1])
    if header.digest and digest_of_all(digests) != header.digest:
        right[:] = False
    values[~right] = 0
    return values, right


def check_right(right: Bool[np.ndarray, " item"], name: str) -> None:
    """Raises FileError where an item is not as it was written; the message names them."""
    wrong = np.flatnonzero(~right)
    if len(wrong):
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise FileError(
            f"{name}: {len(wrong)} of {len(right)} items decode to other values than were written "
            f"(numbers {', '.join(map(str, wrong[:_SHOWN]))}{more}): this machine's tables differ, "
            "or those of the machine that wrote it did; nothing was written here"
        )
