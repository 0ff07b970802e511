"""The bytes of a compressed file, and what is said of damaged ones."""

import dataclasses
import pathlib

import numpy as np
import pytest

from darl_jax.codec.file_format import (
    FileError,
    Header,
    Item,
    Kind,
    digest_of,
    digest_of_all,
    parse,
    serialize,
    uvarint,
)
from darl_jax.codec.writing import write_whole

STREAMS = [np.array(words, np.uint32) for words in ([1, 2**32 - 1], [], [7, 8, 9])]
HEADER = Header(
    kind=Kind.TEXT,
    fast=True,
    model=bytes(range(8)),
    profile=b"prof",
    seed=300,
    steps=16,
    policy=b"poli",
    lanes=8,
    halvings=1,
    source=b"source",
    items=tuple(Item(len(words), 5, b"digest_%d" % i) for i, words in enumerate(STREAMS)),
)


def test_a_file_comes_back_with_all_its_fields():
    data = serialize(HEADER, STREAMS)
    content = parse(data, "file")
    assert content.header == HEADER
    assert not content.damage
    for found, words in zip(content.streams, STREAMS, strict=True):
        np.testing.assert_array_equal(found, words)
    assert len(data) == content.header_bytes + 4 * 5 + 4


def test_one_item_takes_47_bytes_beside_its_stream():
    header = dataclasses.replace(
        HEADER, source=b"", items=(Item(200, 5, b"8 bytes."),), seed=5, steps=500
    )
    words = np.arange(200, dtype=np.uint32)
    assert len(serialize(header, [words])) == 47 + 4 * 200
    assert parse(serialize(header, [words]), "file").header == header


def test_one_digest_for_all_items_and_no_items_at_all():
    items = tuple(Item(item.words, item.dither) for item in HEADER.items)
    for streams, chosen in ((STREAMS, items), ([], ())):
        header = dataclasses.replace(HEADER, items=chosen, digest=digest_of_all([b"a", b"b"]))
        assert parse(serialize(header, streams), "file").header == header


def test_every_flipped_byte_and_every_cut_is_one_error():
    data = serialize(HEADER, STREAMS)
    for at in range(len(data)):
        for mask in (1, 0xFF):
            damaged = bytearray(data)
            damaged[at] ^= mask
            with pytest.raises(FileError, match=r"^file "):
                parse(bytes(damaged), "file")
        with pytest.raises(FileError, match=r"^file is (truncated|empty|damaged)"):
            parse(data[:at], "file")
    with pytest.raises(FileError, match="3 bytes follow its end"):
        parse(data + b"abc", "file")


def test_what_is_missing_of_a_truncated_file_is_counted():
    data = serialize(HEADER, STREAMS)
    with pytest.raises(FileError, match=r"13 of \d+ bytes are missing, and 2 of 3 items are whole"):
        parse(data[:-13], "file")
    content = parse(data[:-13], "file", salvage=True)
    assert [words is None for words in content.streams] == [False, False, True]
    assert "truncated" in content.damage


def test_an_absurd_number_of_items_is_refused_before_it_is_allocated():
    data = serialize(dataclasses.replace(HEADER, items=HEADER.items[:2]), STREAMS[:2])
    at = 4 + 1 + 1 + 8 + 4 + 2 + 1 + 4 + 1 + 1
    absurd = data[:at] + uvarint(2**60) + data[at + 1 :]
    with pytest.raises(FileError, match="table of 1152921504606846976 items"):
        parse(absurd, "file")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x8dA", "is truncated: it has 2 bytes"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG picture"),
        (b"PK\x03\x04....", "is a ZIP archive"),
        (b"\x8dARD\x02" + bytes(60), "of version 2: this program reads version 1"),
        (b"In the beginning", "is of another kind"),
    ],
)
def test_other_files_are_named(data, message):
    with pytest.raises(FileError, match=message):
        parse(data, "file")


def test_digests_depend_on_shape_and_values():
    values = np.arange(6, dtype=np.int32)
    assert digest_of(values).hex() == "77105f1a013682a9"
    assert digest_of(values) == digest_of(values.astype(np.int32)[::1])
    assert len({digest_of(x) for x in (values, values.reshape(2, 3), values[::-1])}) == 3


def test_a_file_that_cannot_be_written_whole_is_not_there(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "new" / "file"
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
    with pytest.raises(FileExistsError, match="exists"):
        write_whole(path, b"other")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "second", b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]
