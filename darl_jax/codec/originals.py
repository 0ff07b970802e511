"""Originals of each kind as items of a model, and the files that are made of items again.

`source` in a compressed file is what the original is beyond the values of its items, in LEB128
integers:

    array   1 with an axis of items, plus 2 without one of channels; then NumPy's name of the type
    image   width and height of each picture; nothing where all have the model's size
    text    number of characters
    audio   samples a second, number of samples
"""

import dataclasses
import io
import math
import pathlib
import wave
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32
from PIL import Image, UnidentifiedImageError

from darl_jax.codec.file_format import FileError, Kind, Reader, uvarint
from darl_jax.codec.grid import Grid
from darl_jax.codec.stream import Layout, Values
from darl_jax.data.audio.wav import wav_bytes

Integers = Int32[np.ndarray, "..."]
_AUDIO_ZERO = 1 << 15  # of 16-bit samples: the data's values are not negative


@dataclasses.dataclass(frozen=True)
class Domain:
    """Values that a model is of.

    Attributes:
      kind: of its data.
      shape: of an item, the channels last.
      levels: values of the data, which the model's are made of.
      integers: the model's values of the data's.
      shown: the data's values of the model's.
      letters: of a text, a byte for each of the data's values.
    """

    kind: Kind
    shape: tuple[int, ...]
    levels: int
    integers: Callable[[Integers], Any] = lambda values: values
    shown: Callable[[Integers], Any] = lambda values: values
    letters: bytes = bytes(range(256))

    @property
    def channels(self) -> int:
        """Channels of an item."""
        return self.shape[-1]

    def values(self, data: np.ndarray, name: str) -> Integers:
        """The model's values of the data's.

        Raises:
          ValueError: a value is none of the data, or would not come back.
        """
        wide = data.astype(np.int64)
        outside = (wide < 0) | (wide >= self.levels)
        values = self.integers(np.where(outside, 0, wide).astype(np.int32)).astype(np.int32)
        wrong = outside | (self.shown(values) != wide)
        if wrong.any():
            every = np.unique(self.shown(self.integers(np.arange(self.levels, dtype=np.int32))))
            raise ValueError(
                f"{name} has the value {data[wrong][0]}, which the model does not know: its values "
                f"are {_listed(every)}"
            )
        return values


@dataclasses.dataclass(frozen=True)
class Original:
    """An original as items."""

    kind: Kind
    source: bytes
    values: Values
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Form:
    """An original without its values: where the items hold it, and how it is written.

    Attributes:
      items: number of them.
      layout: makes the positions that hold the original.
      files: makes the content of each file, in order, of the items' values.
      suffix: of these files.
      several: whether there is another number of them than one, which is a folder's content.
    """

    items: int
    layout: Callable[[], Layout]
    files: Callable[[Values], list[bytes]]
    suffix: str
    several: bool = False


def kind_of(path: pathlib.Path, domain: Domain) -> Kind:
    """Kind of an original by its name: .npy is an array, all else of the model's kind."""
    return Kind.ARRAY if path.suffix.lower() == ".npy" else domain.kind


def read(paths: Sequence[pathlib.Path], kind: Kind, domain: Domain) -> Original:
    """Reads an original; several files of pictures are one.

    Raises:
      ValueError: a file is of another kind than the model's data, or has what it cannot code.
    """
    if kind != Kind.IMAGE and len(paths) != 1:
        raise ValueError(f"--input has {len(paths)} files; only pictures go together into one")
    if kind not in (Kind.ARRAY, domain.kind):
        raise ValueError(
            f"{paths[0]} is to be read as {kind.name.lower()}, and the model is of "
            f"{domain.kind.name.lower()} data"
        )
    reader = {Kind.ARRAY: _array, Kind.IMAGE: _images, Kind.TEXT: _text, Kind.AUDIO: _audio}[kind]
    source, values, layout = reader(paths, domain)
    return Original(kind, source, values, layout)


def form_of(kind: Kind, source: bytes, items: int, domain: Domain, name: str) -> Form:
    """Form of the original in a compressed file.

    Raises:
      FileError: the file's number of items is another one than its source needs.
    """
    reader = Reader(source, name)
    maker = {
        Kind.ARRAY: _array_form, Kind.IMAGE: _images_form, Kind.TEXT: _text_form,
        Kind.AUDIO: _audio_form,
    }[kind]  # fmt: skip
    form = maker(reader, items, domain)
    if form.items != items or reader.left:
        raise FileError(
            f"{name} has {items} items, and an original that needs {form.items}: it was written by "
            "another program"
        )
    return form


# --- arrays --------------------------------------------------------------------------------------


def _array(paths: Sequence[pathlib.Path], domain: Domain) -> tuple[bytes, Values, Layout]:
    (path,) = paths
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array that numpy.load reads: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biu":
        raise ValueError(f"{path} holds no array of integers")
    for many in (True, False):
        for bare in (False, True):
            shape = domain.shape[:-1] if bare else domain.shape
            if bare and domain.channels > 1:
                continue
            if array.shape[many:] == shape and array.ndim == many + len(shape):
                items = array.reshape(len(array) if many else 1, math.prod(domain.shape))
                values = domain.values(items, str(path))
                source = uvarint(many + 2 * bare) + array.dtype.str.encode()
                return source, values, Layout.whole(*values.shape)
    raise ValueError(
        f"{path} has the shape {list(array.shape)}, and the model codes {list(domain.shape)} or "
        "any number of them"
    )


def _array_form(reader: Reader, items: int, domain: Domain) -> Form:
    flags = reader.number("axes")
    dtype = np.dtype(reader.take(reader.left, "type").decode("ascii"))
    shape = domain.shape[:-1] if flags & 2 else domain.shape

    def files(values: Values) -> list[bytes]:
        array = domain.shown(values).astype(dtype).reshape(-1, *shape)
        opened = io.BytesIO()
        np.save(opened, array if flags & 1 else array[0])
        return [opened.getvalue()]

    positions = math.prod(domain.shape)
    needed = items if flags & 1 else 1
    return Form(needed, lambda: Layout.whole(items, positions), files, ".npy")


# --- pictures ------------------------------------------------------------------------------------

_MODES = {1: "L", 3: "RGB"}
_REASONS = {
    "P": "a palette", "RGBA": "an alpha channel", "LA": "an alpha channel", "1": "1-bit pixels",
    "I": "over 8 bits a pixel", "I;16": "16 bits a pixel", "F": "floating-point pixels",
    "CMYK": "CMYK colors", "L": "gray pixels", "RGB": "three channels",
}  # fmt: skip


def _images(paths: Sequence[pathlib.Path], domain: Domain) -> tuple[bytes, Values, Layout]:
    cuts, layouts, sizes = [], [], []
    for path in paths:
        pixels = _pixels(path, domain)
        grid = Grid(pixels.shape[:2], domain.shape)
        cuts.append(grid.cut(domain.values(pixels, str(path))))
        layouts.append(grid.layout())
        sizes.append((pixels.shape[1], pixels.shape[0]))
    own = (domain.shape[1], domain.shape[0])
    numbers = () if all(size == own for size in sizes) else [n for size in sizes for n in size]
    return b"".join(map(uvarint, numbers)), np.concatenate(cuts), Layout.joined(layouts)


def _pixels(path: pathlib.Path, domain: Domain) -> np.ndarray:
    """Pixels [height, width, channel]. Raises ValueError for a mode that would not come back."""
    try:
        with Image.open(path) as image:
            mode = _MODES.get(domain.channels)
            if image.mode != mode:
                raise ValueError(
                    f"{path} has {_REASONS.get(image.mode, f'the mode {image.mode}')}, and the "
                    f"model codes pictures of {domain.channels} channels of 8 bits ({mode})"
                )
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return pixels.reshape(*pixels.shape[:2], domain.channels)


def _images_form(reader: Reader, items: int, domain: Domain) -> Form:
    sizes = []
    while reader.left:
        sizes.append((reader.number("width"), reader.number("height")))
    own = (domain.shape[1], domain.shape[0])
    grids = [Grid(size[::-1], domain.shape) for size in sizes or [own] * items]

    def files(values: Values) -> list[bytes]:
        made, first = [], 0
        for grid in grids:
            pixels = grid.join(values[first : first + len(grid)])
            first += len(grid)
            shown = domain.shown(pixels).astype(np.uint8)
            opened = io.BytesIO()
            Image.fromarray(shown if domain.channels > 1 else shown[..., 0]).save(opened, "PNG")
            made.append(opened.getvalue())
        return made

    return Form(
        items=sum(map(len, grids)),
        layout=lambda: Layout.joined([grid.layout() for grid in grids]),
        files=files,
        suffix=".png",
        several=len(grids) != 1,
    )


# --- sequences -----------------------------------------------------------------------------------


def _text(paths: Sequence[pathlib.Path], domain: Domain) -> tuple[bytes, Values, Layout]:
    (path,) = paths
    text = path.read_bytes()
    strange = text.translate(None, domain.letters)
    if strange:
        raise ValueError(
            f"{path} has the byte {strange[:1]!r}, which the model's alphabet lacks: "
            f"{domain.letters.decode(errors='replace')!r}"
        )
    table = np.zeros(256, np.int32)
    table[np.frombuffer(domain.letters, np.uint8)] = np.arange(len(domain.letters))
    data = table[np.frombuffer(text, np.uint8)]
    return _sequence(data, str(path), domain, [len(data)])


def _text_form(reader: Reader, items: int, domain: Domain) -> Form:
    del items
    grid = Grid((reader.number("length"),), domain.shape)

    def files(values: Values) -> list[bytes]:
        letters = np.frombuffer(domain.letters, np.uint8)
        return [letters[domain.shown(grid.join(values)[:, 0])].tobytes()]

    return Form(len(grid), grid.layout, files, ".txt")


def _audio(paths: Sequence[pathlib.Path], domain: Domain) -> tuple[bytes, Values, Layout]:
    (path,) = paths
    try:
        with wave.open(str(path), "rb") as opened:
            channels, width = opened.getnchannels(), opened.getsampwidth()
            rate, frames = opened.getframerate(), opened.readframes(opened.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is no WAV file of samples: {error}") from error
    if (channels, width) != (1, 2):
        raise ValueError(
            f"{path} has {channels} channels of {8 * width} bits, and the codec takes one of 16"
        )
    data = np.frombuffer(frames, "<i2").astype(np.int32) + _AUDIO_ZERO
    return _sequence(data, str(path), domain, [rate, len(data)])


def _audio_form(reader: Reader, items: int, domain: Domain) -> Form:
    del items
    rate = reader.number("rate")
    grid = Grid((reader.number("length"),), domain.shape)

    def files(values: Values) -> list[bytes]:
        samples = domain.shown(grid.join(values)[:, 0]) - _AUDIO_ZERO
        return [wav_bytes(samples.astype(np.int16), rate)]

    return Form(len(grid), grid.layout, files, ".wav")


def _sequence(
    data: Integers, name: str, domain: Domain, numbers: Sequence[int]
) -> tuple[bytes, Values, Layout]:
    grid = Grid((len(data),), domain.shape)
    values = grid.cut(domain.values(data[:, None], name))
    return b"".join(map(uvarint, numbers)), values, grid.layout()


def _listed(values: np.ndarray) -> str:
    """Values in words: 0 to 255, or the first ones."""
    if len(values) == values[-1] + 1:
        return f"0 to {values[-1]}"
    shown = ", ".join(map(str, values[:4]))
    return f"{shown} ... {values[-1]}" if len(values) > 5 else shown
