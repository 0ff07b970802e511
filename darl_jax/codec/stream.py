"""Symbols of items, in the order in which the network predicts them, and their streams.

Encoder and decoder walk through the same network calls (`walk`), which differ in one thing: where
the next symbols come from. The input of each call are integers that are exact, so that no error of
one call reaches another.

For each stage, and each call i of its policy: one network call for all rows, in which the positions
of rank below p_i are known; then the positions of rank p_i to p_(i+1), in increasing position, each
with a table of its own. A row has a stream of its own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64

from darl_jax.codec import tables
from darl_jax.codec.alternatives import Alternatives
from darl_jax.codec.coder import Decoder, Encoder
from darl_jax.codec.file_format import Words
from darl_jax.codec.order import Starts, ranks, ranks_of_coded

Values = Int32[np.ndarray, "row position"]
# The logits of alternatives and the symbols of an item in one call; calls have other shapes.
AnyRelevant = Float[np.ndarray, "..."]
Piece = tuple[AnyRelevant, Int32[np.ndarray, "..."]]
# Row, logits of the alternatives at some of its positions, these positions, stage -> symbols.
Code = Callable[[int, tables.Relevant, Int64[np.ndarray, " n"], int], Int32[np.ndarray, " n"]]


@runtime_checkable
class Network(Protocol):
    """Logits at all positions of a batch; the same function for encoder and decoder."""

    def __call__(
        self,
        values: Int32[np.ndarray, "row position"],
        known: Bool[np.ndarray, "row position"],
        step: Int32[np.ndarray, " row"],
        stage: int,
    ) -> Float[np.ndarray, "row position output"]:
        """Logits of what the stage makes of each position; `step` is t + stage D."""
        ...


@dataclasses.dataclass(frozen=True)
class Walk:
    """Calls of a network that generate the items of a batch.

    Attributes:
      network, alternatives: the model's.
      seed: of the order.
      starts: for each stage the first rank of each call.
      called: is told of each call.
    """

    network: Network
    alternatives: Alternatives
    seed: int
    starts: Starts
    called: Callable[[], None] = lambda: None

    def __call__(self, layout: "Layout", code: Code) -> Values:
        """Generates a batch.

        Args:
          layout: the positions that are coded.
          code: has the symbols.
        """
        rows, positions = layout.coded.shape
        values = np.zeros((rows, positions), np.int32)
        coded_count = layout.coded.sum(axis=1)
        for stage, starts in enumerate(self.starts):
            rank = ranks_of_coded(ranks(self.seed, stage, positions), layout.coded)
            past = values.copy()  # of the stage: known in full
            for start, end in zip(starts, [*starts[1:], positions], strict=True):
                ranked = (rank >= start) & (rank < end) & layout.coded
                if start >= min(end, coded_count.max()):
                    continue
                step = np.full(rows, start + stage * positions, np.int32)
                logits = self.network(values, rank < start, step, stage)
                self.called()
                for row in np.flatnonzero(ranked.any(axis=1)):
                    chosen = np.flatnonzero(ranked[row])
                    of_row = logits[row, chosen].astype(np.float64)
                    relevant = self.alternatives.relevant(of_row, past[row, chosen], stage)
                    tables.check_logits(relevant)
                    symbols = code(int(row), relevant, chosen, stage)
                    values[row, chosen] = self.alternatives.produced(
                        past[row, chosen], symbols, stage
                    )
            values = np.take_along_axis(values, layout.twin, axis=1)
        return values

    def calls(self, coded: int) -> int:
        """Network calls for a batch whose largest item has so many coded positions."""
        ends = [[*starts[1:], None] for starts in self.starts]
        return sum(
            start < coded and start != end
            for starts, stage_ends in zip(self.starts, ends, strict=True)
            for start, end in zip(starts, stage_ends, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Layout:
    """Positions of items that hold the original, and the others, which only fill the model's shape.

    What fills up is never coded: the model does not learn of it, and after each stage it has the
    value of a position that does hold some of the original.

    Attributes:
      coded: positions of the original.
      twin: for each position the one whose value it has; itself, where it is coded.
    """

    coded: Bool[np.ndarray, "row position"]
    twin: Int64[np.ndarray, "row position"]

    @classmethod
    def whole(cls, rows: int, positions: int) -> "Layout":
        """Items without anything that fills up."""
        twin = np.broadcast_to(np.arange(positions), (rows, positions))
        return cls(np.ones((rows, positions), bool), twin)

    @classmethod
    def joined(cls, layouts: "Sequence[Layout]") -> "Layout":
        """Items of several originals, one after another."""
        return cls(
            np.concatenate([layout.coded for layout in layouts]),
            np.concatenate([layout.twin for layout in layouts]),
        )

    def rows(self, first: int, lanes: int) -> "Layout":
        """Rows from `first` on, filled up to `lanes` with rows that have nothing coded."""
        empty = lanes - len(self.coded[first : first + lanes])
        positions = self.coded.shape[1]
        coded = np.zeros((empty, positions), bool)
        twin = np.broadcast_to(np.arange(positions), coded.shape)
        return Layout(
            np.concatenate([self.coded[first : first + lanes], coded]),
            np.concatenate([self.twin[first : first + lanes], twin]),
        )


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Stream of one item.

    Attributes:
      bits: -log2 of the probabilities that the tables give to the symbols.
      halvings: how often the guard was halved until a dither kept all logits apart.
    """

    words: Words
    dither: int
    halvings: int
    bits: float


def encode(walk: Walk, values: Values, layout: Layout, *, guarded: bool) -> list[Encoded]:
    """Encodes a batch; what is not coded of `values` does not matter.

    Args:
      guarded: whether another machine is to decode it.

    Raises:
      ValueError: logits are not finite, or no dither keeps them from all rounding boundaries.
    """
    pieces: list[list[Piece]] = [[] for _ in values]

    def code(
        row: int, relevant: tables.Relevant, positions: Int64[np.ndarray, " n"], stage: int
    ) -> Int32[np.ndarray, " n"]:
        symbols = walk.alternatives.stages.choice(values[row, positions], stage)
        pieces[row].append((relevant, symbols))
        return symbols

    walk(layout, code)
    return [_encode_item(item, guarded) for item in pieces]


def _encode_item(pieces: Sequence[Piece], guarded: bool) -> Encoded:
    relevant = [piece for piece, _ in pieces]
    dither, halvings = safe_dither(relevant) if guarded else (0, 0)
    encoder, bits = Encoder(), 0.0
    for piece, symbols in pieces:
        shares = tables.frequencies(piece, dither)
        encoder.encode(symbols, shares)
        bits += float(tables.table_bits(shares, symbols).sum())
    return Encoded(encoder.words(), dither, halvings, bits)


def safe_dither(relevant: Sequence[AnyRelevant]) -> tuple[int, int]:
    """The first dither that is safe for all logits, and how often the guard was halved for it.

    Raises:
      ValueError: none is, with any guard.
    """
    for halvings, guard in enumerate(tables.GUARDS):
        unsafe = np.zeros(tables.DITHERS, bool)
        for piece in relevant:
            unsafe |= tables.unsafe_dithers(piece, guard)
        if not unsafe.all():
            return int(np.argmin(unsafe)), halvings
    raise ValueError(
        f"none of {tables.DITHERS} dithers keeps all logits of an item {tables.GUARDS[-1]} nats "
        "from the boundaries of rounding, so that another machine might decode it wrongly; take "
        "smaller items, or --fast for this machine alone"
    )


def decode(
    walk: Walk,
    streams: Sequence[Words],
    dithers: Sequence[int],
    layout: Layout,
) -> tuple[Values, list[bool]]:
    """Decodes a batch: the values, and whether each stream ended where it should."""
    decoders = [Decoder(words) for words in streams]

    def code(
        row: int, relevant: tables.Relevant, positions: Int64[np.ndarray, " n"], stage: int
    ) -> Int32[np.ndarray, " n"]:
        del positions, stage
        return decoders[row].decode(tables.frequencies(relevant, dithers[row]))

    values = walk(layout, code)
    return values, [decoder.ended() for decoder in decoders]
