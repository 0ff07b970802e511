"""Files of generated integers: pictures, text or sound, by the feature that they stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from darl_jax.data.audio.wav import wav_bytes
from darl_jax.data.text.alphabet import decode
from darl_jax.generation.image_grid import image_grid, near_square

Values = Int[np.ndarray, "example ..."]


def picture(values: Values) -> UInt8[np.ndarray, "_ _ 3"]:
    """All images in one picture."""
    return image_grid(near_square(values.astype(np.uint8)))


def texts(values: Values, data: Any) -> list[str]:
    """The texts of examples."""
    return [decode(each.reshape(-1), data.alphabet) for each in values]


def _write_images(folder: Path, values: Values, data: Any) -> str:
    del data
    Image.fromarray(picture(values)).save(folder / "grid.png")
    return "grid.png has all of them"


def _write_texts(folder: Path, values: Values, data: Any) -> str:
    lines = texts(values, data)
    (folder / "samples.txt").write_text("\n".join(lines) + "\n")
    return "\n".join(["samples.txt has all of them", *lines])


def _write_sounds(folder: Path, values: Values, data: Any) -> str:
    for number, each in enumerate(values):
        samples = (each.reshape(-1) - 32768).astype(np.int16)
        (folder / f"{number:04d}.wav").write_bytes(wav_bytes(samples, data.sample_rate))
    return f"{len(values)} WAV files"


# Feature of the data -> writer, which returns what to print.
WRITERS: dict[str, Callable[[Path, Values, Any], str]] = {
    "image": _write_images,
    "text": _write_texts,
    "sound": _write_sounds,
}
