"""WAV files of 16-bit mono samples."""

import io
import wave

import numpy as np
from etils import epath
from jaxtyping import Int16


class NotReadableError(ValueError):
    """A file that is no WAV file of 16-bit mono samples of the right rate."""


def read_wav(path: epath.Path, sample_rate: int) -> Int16[np.ndarray, " sample"]:
    """Samples of a file.

    Raises:
      NotReadableError: the file is of another kind.
    """
    try:
        with wave.open(io.BytesIO(path.read_bytes()), "rb") as file:
            channels, width, rate = file.getparams()[:3]
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise NotReadableError(f"it cannot be read as WAV ({error})") from error
    if (channels, width, rate) != (1, 2, sample_rate):
        raise NotReadableError(
            f"it has {channels} channels of {8 * width} bits at {rate} Hz, and must have 1 of 16 "
            f"bits at data.sample_rate={sample_rate} Hz"
        )
    return np.frombuffer(samples[: len(samples) // 2 * 2], "<i2").astype(np.int16)


def wav_bytes(samples: Int16[np.ndarray, " sample"], sample_rate: int) -> bytes:
    """A WAV file of 16-bit mono samples."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, sample_rate, len(samples), "NONE", "not compressed"))
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()
