"""Scikit-learn's handwritten digits as a source."""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from darl_jax.data import order
from darl_jax.data.base import fingerprint_of
from darl_jax.data.sources.base import Record, base_split, slice_split

DIGITS_TRAIN = 1297
DIGITS_VALIDATION = 500


class DigitsSource:
    """Scikit-learn's 1797 handwritten digits, 8 x 8 gray: nothing to download.

    They come in a fixed pseudo-random order; "train" is the first 1297, "validation" the other
    500. The 17 gray levels 0 .. 16 become 0 .. 255, ink bright on black.
    """

    dataset = "digits"
    class_names = tuple("0123456789")

    def __init__(self, split: str, *, split_key: str = "train_split"):
        """Takes "train" or "validation", or slices of one of them."""
        lengths = {"train": DIGITS_TRAIN, "validation": DIGITS_VALIDATION}
        index = slice_split(split, lengths, split_key)
        bases = {base_split(part) for part in split.split("+")}
        if len(bases) > 1:
            raise ValueError(f"data.{split_key}='{split}' joins several splits of digits")
        offset = 0 if bases == {"train"} else DIGITS_TRAIN
        total = DIGITS_TRAIN + DIGITS_VALIDATION
        self.split = split
        self._index = order.permute(index + offset, total, order.STREAM_DIGITS)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: Sequence[int]) -> list[Record]:
        """The digits of these numbers, as pixels."""
        images, labels = _digits()
        chosen = [int(self._index[i]) for i in index]
        return [Record(images[i], int(labels[i]), f"digit {i}") for i in chosen]

    def files(self, index: Sequence[int]) -> list[str]:
        """None: they come with scikit-learn."""
        del index
        return []

    def fingerprint(self) -> str:
        """A hash of the digits and their order."""
        return fingerprint_of(self.dataset, self._index.tobytes())


@functools.cache
def _digits() -> tuple[UInt8[np.ndarray, "1797 8 8 1"], Int64[np.ndarray, " 1797"]]:
    from sklearn import datasets  # Imported here for it costs a second, and only digits needs it.

    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, digits.target.astype(np.int64)
