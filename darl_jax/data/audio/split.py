"""A split of a folder of WAV files."""

from collections import Counter

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int32, Int64, UInt16

from darl_jax.data import order
from darl_jax.data.audio.config import AudioConfig
from darl_jax.data.audio.wav import NotReadableError, read_wav
from darl_jax.data.base import Batch, fingerprint_of
from darl_jax.data.sources.base import BadRecordError
from darl_jax.data.sources.listing import files_below
from darl_jax.data.sources.texts import SHARES

_SILENCE = 32768
# Lists of Speech Commands' archive, by split; all other files are for training.
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


class AudioSplit:
    """Clips of one length."""

    class_names: tuple[str, ...] = ()
    in_memory = False

    def __init__(self, config: AudioConfig, key: str):
        """Lists the files of the split that a key names. Raises ValueError."""
        self.config = config
        self.dataset, self.split = config.data_dir, getattr(config, key)
        self._files = _files_of(config, self.split, key)
        if not self._files:
            raise ValueError(f"data.{key}='{self.split}' of {self.dataset} holds no WAV file")
        self._clip(0, 0.0)
        logging.info(
            "data.%s: %s, split '%s', %d clips", key, self.dataset, self.split, len(self._files)
        )

    def __len__(self) -> int:
        return len(self._files)

    def fingerprint(self) -> str:
        """A hash of the files' names in their order."""
        return fingerprint_of(*self._files)

    def train_examples(
        self, index: Int64[np.ndarray, " n"], epoch: Int64[np.ndarray, " n"], seed: int
    ) -> Batch:
        """Clips; what is longer is cropped at a place by (seed, epoch, record)."""
        places = order.uniforms(seed, epoch, index, 1)[:, 0]
        clips = [self._clip(*each) for each in zip(index.tolist(), places.tolist(), strict=True)]
        return {"sound": np.stack(clips)}

    def eval_examples(self, index: Int64[np.ndarray, " n"]) -> Batch:
        """Clips; what is longer is cropped at its beginning."""
        return {"sound": np.stack([self._clip(number, 0.0) for number in index.tolist()])}

    def labels(self, index: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """There are none."""
        return np.full(len(index), -1, np.int32)

    def describe(self, index: Int64[np.ndarray, " n"]) -> str:
        """Names the files."""
        files = ", ".join(self._files[number] for number in index.tolist()[:8])
        return f"{self.dataset}, split '{self.split}', {files}"

    def _clip(self, number: int, place: float) -> UInt16[np.ndarray, "length 1"]:
        name, length = self._files[number], self.config.length
        try:
            samples = read_wav(epath.Path(self.dataset) / name, self.config.sample_rate)
        except NotReadableError as error:
            raise BadRecordError(self.dataset, self.split, number, name, str(error)) from error
        begin = int(place * (max(len(samples) - length, 0) + 1))
        clip = np.full(length, _SILENCE, np.uint16)
        cropped = samples[begin : begin + length].astype(np.int32) + _SILENCE
        clip[: len(cropped)] = cropped
        return clip[:, None]


def _files_of(config: AudioConfig, split: str, key: str) -> list[str]:
    """Relative paths of a split's files, in alphabetical order."""
    if split not in SHARES:
        raise ValueError(f"data.{key}='{split}' is unknown; choose from {', '.join(SHARES)}")
    root = epath.Path(config.data_dir)
    if not config.data_dir or not root.is_dir():
        raise ValueError(f"data.data_dir='{config.data_dir}' is no folder; give one of WAV files")
    if all((root / name).exists() for name in _LISTS.values()):
        return _speech_commands(root, config.words, split)
    if (root / "train").is_dir():
        return [f"{split}/{name}" for name in _wav_files(root / split)]
    files = _wav_files(root)
    shuffled = order.permute(np.arange(len(files)), len(files), order.STREAM_FILES)
    begin, end = (len(files) * share // 100 for share in SHARES[split])
    return sorted(files[number] for number in shuffled[begin:end])


def _speech_commands(root: epath.Path, words: tuple[str, ...], split: str) -> list[str]:
    """Files of Speech Commands by its own lists, of some words."""
    lists = {name: {*(root / file).read_text().split()} for name, file in _LISTS.items()}
    folders = words or sorted(
        each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("_")
    )
    files = [f"{word}/{name}" for word in folders for name in _wav_files(root / word)]
    if split in lists:
        return [name for name in files if name in lists[split]]
    held_out = set().union(*lists.values())
    return [name for name in files if name not in held_out]


def _wav_files(folder: epath.Path) -> list[str]:
    """Relative paths of the WAV files below a folder, hidden ones left out."""
    if not folder.is_dir():
        return []
    files = files_below(folder, Counter())
    return sorted(
        path
        for path in files
        if path.lower().endswith(".wav") and not path.rpartition("/")[2].startswith(".")
    )
