"""From files of each kind to compressed ones and back."""

import dataclasses
import io
import math
import pathlib
import wave

import numpy as np
import pytest
from PIL import Image

from darl_jax.codec import compression
from darl_jax.codec.alternatives import Alternatives
from darl_jax.codec.compression import Settings
from darl_jax.codec.file_format import FileError, Kind, parse
from darl_jax.codec.model import CodecModel
from darl_jax.codec.originals import Domain, form_of, kind_of, read
from darl_jax.methods.ardm.stages import Stages
from tests.codec.fake_network import FakeNetwork

pytest.importorskip("constriction", reason="there is no wheel for this machine")

GRAY = Domain(Kind.IMAGE, (4, 3, 1), 256)
COLOR = Domain(Kind.IMAGE, (2, 2, 3), 256)
TEXT = Domain(Kind.TEXT, (10, 1), 256)
LETTERS = Domain(Kind.TEXT, (10, 1), 27, letters=b" abcdefghijklmnopqrstuvwxyz")
AUDIO = Domain(Kind.AUDIO, (8, 1), 65536)
SETTINGS = Settings(steps=3, policy="even", lanes=2)


def model_of(domain: Domain, seed: int = 0, **changes) -> CodecModel:
    branching = 16 if domain.levels > 256 else 0
    stages = Stages(domain.levels, branching, 0 if branching else 128)
    positions = math.prod(domain.shape)
    model = CodecModel(
        network=FakeNetwork(positions, branching or domain.levels, seed=seed),
        alternatives=Alternatives(stages, "direct"),
        shape=domain.shape,
        hash=bytes([seed]) * 32,
        losses=np.ones((stages.number, positions)),
    )
    return dataclasses.replace(model, **changes)


def compressed(paths, domain: Domain, settings: Settings = SETTINGS) -> bytes:
    original = read(paths, kind_of(paths[0], domain), domain)
    return compression.compress(
        original.values, original.layout, original.kind, original.source, model_of(domain), settings
    ).data


def decompressed(
    data: bytes, domain: Domain, model: CodecModel | None = None, lanes: int = 3
) -> list[bytes]:
    content, model = parse(data, "file"), model or model_of(domain)
    _, source = compression.split_source(content.header)
    items = len(content.header.items)
    form = form_of(content.header.kind, source, items, domain, "file")
    walk = compression.rebuilt_walk(content.header, "file", model)
    values, right = compression.decompress(content, model, walk, form.layout(), lanes)
    compression.check_right(right, "file")
    return form.files(values)


def picture(path: pathlib.Path, height: int, width: int, channels: int) -> pathlib.Path:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
    Image.fromarray(pixels if channels > 1 else pixels[..., 0]).save(path)
    return path


def sound(path: pathlib.Path, samples: int, channels: int = 1, width: int = 2) -> pathlib.Path:
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.setframerate(11025)
        opened.writeframes(np.random.default_rng(0).bytes(samples * channels * width))
    return path


@pytest.mark.parametrize("items", [0, 1, 2, 3])
@pytest.mark.parametrize("item_digests", [True, False])
def test_arrays_of_any_number_of_items_come_back_with_their_type(tmp_path, items, item_digests):
    array = np.random.default_rng(0).integers(0, 256, (items, 4, 3), np.uint16)
    np.save(tmp_path / "a.npy", array)
    settings = dataclasses.replace(SETTINGS, item_digests=item_digests)
    (found,) = decompressed(compressed([tmp_path / "a.npy"], GRAY, settings), GRAY)
    found = np.load(io.BytesIO(found))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_one_array_without_an_axis_of_items_comes_back_without_it(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (2, 2, 3))
    np.save(tmp_path / "a.npy", array)
    (found,) = decompressed(compressed([tmp_path / "a.npy"], COLOR), COLOR)
    np.testing.assert_array_equal(np.load(io.BytesIO(found)), array)


def test_pictures_of_any_size_come_back_pixel_by_pixel(tmp_path):
    paths = [picture(tmp_path / f"{h}.png", h, w, 3) for h, w in ((2, 2), (5, 3), (1, 1))]
    found = decompressed(compressed(paths, COLOR), COLOR)
    for path, data in zip(paths, found, strict=True):
        back = Image.open(io.BytesIO(data))
        assert back.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(back), np.asarray(Image.open(path)))


def test_one_picture_of_the_models_size_costs_47_bytes_beside_its_stream(tmp_path):
    data = compressed([picture(tmp_path / "a.png", 4, 3, 1)], GRAY)
    content = parse(data, "file")
    assert len(data) == 4 * content.header.items[0].words + 47 - 1 - 1  # small seed, steps, words
    (found,) = decompressed(data, GRAY)
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(found))), np.asarray(Image.open(tmp_path / "a.png"))
    )


@pytest.mark.parametrize("text", [b"", b"short", b"exactly 20 bytes, yes", bytes(range(256))])
def test_texts_of_any_length_come_back_byte_by_byte(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text)
    assert decompressed(compressed([tmp_path / "a.txt"], TEXT), TEXT) == [text]


def test_texts_of_letters_come_back_and_other_characters_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b" the quick brown fox ")
    data = compressed([tmp_path / "a.txt"], LETTERS)
    assert decompressed(data, LETTERS) == [b" the quick brown fox "]
    (tmp_path / "a.txt").write_bytes(b"the Fox")
    with pytest.raises(ValueError, match="has the byte b'F', which the model's alphabet lacks"):
        compressed([tmp_path / "a.txt"], LETTERS)


@pytest.mark.parametrize("samples", [0, 16, 19])
def test_sounds_come_back_sample_by_sample_with_their_rate(tmp_path, samples):
    path = sound(tmp_path / "a.wav", samples)
    assert decompressed(compressed([path], AUDIO), AUDIO) == [path.read_bytes()]


def test_what_cannot_come_back_is_refused_with_the_reason(tmp_path):
    def refusal(path: pathlib.Path, domain: Domain) -> str:
        with pytest.raises(ValueError) as raised:
            read([path], kind_of(path, domain), domain)
        assert str(raised.value).startswith(str(path))
        return str(raised.value)

    image = Image.new("RGBA", (4, 4))
    image.save(tmp_path / "alpha.png")
    image.convert("P").save(tmp_path / "palette.png")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    (tmp_path / "text").write_bytes(b"text")
    np.save(tmp_path / "a.npy", np.full((1, 4, 3), 300))
    np.save(tmp_path / "float.npy", np.zeros((1, 4, 3)))
    np.save(tmp_path / "shape.npy", np.zeros((1, 5, 3), int))
    assert "has an alpha channel" in refusal(tmp_path / "alpha.png", COLOR)
    assert "has a palette" in refusal(tmp_path / "palette.png", COLOR)
    assert "has 16 bits a pixel" in refusal(tmp_path / "deep.png", GRAY)
    assert "has three channels" in refusal(picture(tmp_path / "b.png", 2, 2, 3), GRAY)
    assert "cannot be read as a picture" in refusal(tmp_path / "text", GRAY)
    assert "has the value 300" in refusal(tmp_path / "a.npy", GRAY)
    assert "no array of integers" in refusal(tmp_path / "float.npy", GRAY)
    assert "has the shape [1, 5, 3]" in refusal(tmp_path / "shape.npy", GRAY)
    assert "2 channels of 16 bits" in refusal(sound(tmp_path / "a.wav", 4, channels=2), AUDIO)
    assert "1 channels of 8 bits" in refusal(sound(tmp_path / "b.wav", 4, width=1), AUDIO)
    assert "no WAV file" in refusal(tmp_path / "text", AUDIO)
    few = dataclasses.replace(GRAY, integers=lambda x: x // 16, shown=lambda x: x * 16)
    np.save(tmp_path / "c.npy", np.full((1, 4, 3), 17))
    assert "its values are 0, 16, 32, 48 ... 240" in refusal(tmp_path / "c.npy", few)


def test_another_model_policy_or_machine_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a text of some length")
    data = compressed([tmp_path / "a.txt"], TEXT)

    def refusal(data: bytes, model: CodecModel) -> str:
        with pytest.raises(FileError) as raised:
            decompressed(data, TEXT, model)
        return str(raised.value)

    assert "0000000000000000, and --checkpoint is the model 0101010101010101" in refusal(
        data, model_of(TEXT, seed=1)
    )
    other = FakeNetwork(10, 256, seed=1)
    assert "of 3 items decode to other values" in refusal(data, model_of(TEXT, network=other))
    losses = np.geomspace(8, 1, 10)[None]
    best = dataclasses.replace(SETTINGS, policy="best")
    original = read([tmp_path / "a.txt"], Kind.TEXT, TEXT)
    made = compression.compress(
        original.values, original.layout, Kind.TEXT, original.source,
        model_of(TEXT, losses=losses), best,
    )  # fmt: skip
    assert decompressed(made.data, TEXT, model_of(TEXT, losses=losses)) == [
        b"a text of some length"
    ]
    assert "neither the even one nor what the losses" in refusal(made.data, model_of(TEXT))


def test_the_fast_mode_decodes_under_the_same_numerics_alone(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"a text of some length")
    settings = dataclasses.replace(SETTINGS, fast=True, explain=True)
    data = compressed([tmp_path / "a.txt"], TEXT, settings)
    assert decompressed(data, TEXT) == [b"a text of some length"]  # with the file's lanes
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=SSE4_2")
    with pytest.raises(FileError, match=r"XLA_FLAGS=.*lanes=2\), and here .*SSE4_2"):
        decompressed(data, TEXT)


def test_a_files_length_and_items_must_agree(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a text of some length")
    content = parse(compressed([tmp_path / "a.txt"], TEXT), "file")
    with pytest.raises(FileError, match="has 3 items, and an original that needs 9223372036"):
        form_of(Kind.TEXT, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 3, TEXT, "file")
    assert form_of(Kind.TEXT, content.header.source, 3, TEXT, "file").items == 3
