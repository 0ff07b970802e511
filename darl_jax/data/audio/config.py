"""Config of the data kind `audio`."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from darl_jax.data.base import DataConfig, Features, Integers, Splits

if TYPE_CHECKING:
    from darl_jax.data.audio.split import AudioSplit

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclasses.dataclass(frozen=True)
class AudioConfig(DataConfig):
    """WAV files of 16-bit mono samples, as integers from 0 to 65535 with silence at 32768."""

    name: str = "audio"
    # A folder of WAV files, whose names in a fixed random order are cut 90, 5 and 5%; one with
    # sub-folders train, validation and test; or Speech Commands with its two lists.
    data_dir: str = ""
    train_split: str = "train"  # "train", "validation" or "test"
    validation_split: str = "validation"  # the same for the clips that are held out
    words: tuple[str, ...] = DIGITS  # folders of Speech Commands that are read; empty for all
    sample_rate: int = 16000  # samples in a second
    length: int = 16000  # samples of an example; shorter clips end in silence, longer are cropped

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.sample_rate >= 1, "sample_rate", "at least 1")
        self.check(self.length >= 1, "length", "at least 1")

    @property
    def features(self) -> Features:
        """`sound`, uint16 of (length, 1)."""
        import jax  # Data workers start without it.

        return {"sound": jax.ShapeDtypeStruct((self.length, 1), np.uint16)}

    @property
    def integers(self) -> Integers:
        """The samples."""
        return Integers("sound", 65536)

    def open(self) -> Splits:
        """Lists the files and reads the first of each split.

        Raises:
          ValueError: there are none, or one is of another kind; the message names key and file.
        """
        return Splits(self.open_split("train_split"), self.open_split("validation_split"))

    def open_split(self, key: str) -> "AudioSplit":
        """As `open`, but one split: "train_split" or "validation_split"."""
        from darl_jax.data.audio.split import AudioSplit

        return AudioSplit(self, key)
