"""Range coder of integer tables, by constriction (https://pypi.org/project/constriction).

The first symbol in is the first out, so that encoder and decoder walk through the same steps. A
stream is a sequence of 32-bit words. Nothing is noticed of a damaged one: the digests of the file
are what finds it.
"""

import importlib
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, UInt32


def _constriction() -> Any:
    """The package. Raises ImportError with the way to get it."""
    try:
        return importlib.import_module("constriction")
    except ImportError as error:
        raise ImportError(
            "the codec needs the package constriction (pip install 'constriction>=0.4.2,<0.7'), "
            "which exists for Linux on x86-64 and for macOS"
        ) from error


def _family() -> Any:
    # Its scale is exactly 1 for integers that sum to 2^24 less their number, and it adds 1 to each:
    # the frequencies are then the integers that tables.py makes. Version 0.5 has another default.
    return _constriction().stream.model.Categorical(perfect=False)


class Encoder:
    """Encoder of one stream."""

    def __init__(self) -> None:
        self._coder = _constriction().stream.queue.RangeEncoder()
        self._family = _family()

    def encode(
        self, symbols: Int32[np.ndarray, " n"], shares: Float64[np.ndarray, "n alternative"]
    ) -> None:
        """Appends symbols, each with its table (`tables.frequencies`)."""
        if len(symbols):
            self._coder.encode(
                np.ascontiguousarray(symbols), self._family, np.ascontiguousarray(shares)
            )

    def words(self) -> UInt32[np.ndarray, " word"]:
        """The whole stream; empty for no symbol."""
        return self._coder.get_compressed()


class Decoder:
    """Decoder of one stream."""

    def __init__(self, words: UInt32[np.ndarray, " word"]) -> None:
        self._coder = _constriction().stream.queue.RangeDecoder(
            np.ascontiguousarray(words, np.uint32)
        )
        self._family = _family()

    def decode(self, shares: Float64[np.ndarray, "n alternative"]) -> Int32[np.ndarray, " n"]:
        """The next symbols, one for each table; symbols of a damaged stream are wrong ones."""
        if not len(shares):
            return np.zeros(0, np.int32)
        return self._coder.decode(self._family, np.ascontiguousarray(shares))

    def ended(self) -> bool:
        """False where words are left over, which is certain to be wrong."""
        return bool(self._coder.maybe_exhausted())
