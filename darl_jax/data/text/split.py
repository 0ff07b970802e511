"""A split of a text, in pieces."""

import numpy as np
from absl import logging
from jaxtyping import Int32, Int64

from darl_jax.data import order
from darl_jax.data.base import Batch, fingerprint_of
from darl_jax.data.sources.texts import read_text, split_bytes
from darl_jax.data.text.alphabet import encode
from darl_jax.data.text.config import TextConfig


class TextSplit:
    """Pieces of a text in order, what is left at the end dropped.

    Records to learn from are pieces of `piece_length` characters, held-out ones of `length`, so
    that no character counts twice.
    """

    class_names: tuple[str, ...] = ()
    in_memory = True

    def __init__(self, config: TextConfig, key: str):
        """Reads the split that a key names. Raises ValueError."""
        self.config = config
        self.dataset = config.path or config.source
        self.split = getattr(config, key)
        self._piece = config.piece_length if key == "train_split" else config.length
        text = split_bytes(read_text(config.source, config.path), self.split, key)
        self._text = encode(text, config.alphabet)
        if not len(self):
            raise ValueError(
                f"data.{key}='{self.split}' of {self.dataset} has {len(self._text)} characters, "
                f"and a record has {self._piece}"
            )
        logging.info(
            "data.%s: %s, split '%s', %d characters in %d pieces of %d",
            *(key, self.dataset, self.split, len(self._text), len(self), self._piece),
        )

    def __len__(self) -> int:
        return len(self._text) // self._piece

    def fingerprint(self) -> str:
        """A hash of the text and the length of its pieces."""
        return fingerprint_of(self.config.alphabet, str(self._piece), self._text.tobytes())

    def train_examples(
        self, index: Int64[np.ndarray, " n"], epoch: Int64[np.ndarray, " n"], seed: int
    ) -> Batch:
        """Crops at places that follow from (seed, epoch, record)."""
        uniforms = order.uniforms(seed, epoch, index, 1)[:, 0]
        places = (uniforms * (self._piece - self.config.length + 1)).astype(np.int64)
        return self._cut(index * self._piece + places)

    def eval_examples(self, index: Int64[np.ndarray, " n"]) -> Batch:
        """The beginning of each piece, which is all of it in a split that is held out."""
        return self._cut(index * self._piece)

    def labels(self, index: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """There are none."""
        return np.full(len(index), -1, np.int32)

    def describe(self, index: Int64[np.ndarray, " n"]) -> str:
        """Names the pieces."""
        pieces = ", ".join(map(str, index.tolist()))
        return f"{self.dataset}, split '{self.split}', pieces {pieces} of {self._piece} characters"

    def _cut(self, begins: Int64[np.ndarray, " n"]) -> Batch:
        places = begins[:, None] + np.arange(self.config.length)
        return {"text": self._text[places][..., None]}
