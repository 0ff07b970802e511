"""A folder of images needs no preparation, and says what is wrong with it."""

import errno
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from absl import logging
from PIL import Image, features

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.sources.base import BadRecordError
from darl_jax.data.sources.folder import FolderSource


def write_images(directory: pathlib.Path, count: int, suffix: str = ".png") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((4, 4, 3), i % 256, np.uint8)
        Image.fromarray(pixels).save(directory / f"image{i:03d}{suffix}")


def names(source: FolderSource) -> list[str]:
    return [record.name for record in source.read(range(len(source)))]


def message_of(directory: pathlib.Path | str, split: str = "train", **keywords: str) -> str:
    with pytest.raises(ValueError) as caught:
        FolderSource(str(directory), split, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sub_folders_are_classes_in_alphabetical_order(tmp_path):
    write_images(tmp_path / "dog", 5)
    write_images(tmp_path / "cat" / "tabby", 3, ".JPEG")
    source = FolderSource(str(tmp_path), "train")
    assert (len(source), source.class_names) == (8, ("cat", "dog"))
    for record in source.read(range(8)):
        assert record.label == (0 if record.name.startswith("cat") else 1)
        assert record.image == (tmp_path / record.name).read_bytes()


def test_flat_folder_has_no_classes_and_a_file_that_is_gone_is_a_bad_record(tmp_path):
    write_images(tmp_path, 6)
    source = FolderSource(str(tmp_path), "train")
    assert (len(source), source.class_names) == (6, ())
    assert {record.label for record in source.read(range(6))} == {-1}
    (tmp_path / "image001.png").unlink()
    with pytest.raises(BadRecordError, match=r"image001\.png"):
        source.read(range(6))


def test_slices_part_the_folder_and_hold_all_classes(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_images(tmp_path / name, 50)
    train = FolderSource(str(tmp_path), "train[:80%]")
    validation = FolderSource(str(tmp_path), "train[80%:]", split_key="validation_split")
    assert (len(train), len(validation)) == (160, 40)
    assert len({*names(train), *names(validation)}) == 200
    counts = np.bincount([record.label for record in validation.read(range(40))], minlength=4)
    assert counts.min() >= 3
    assert names(train) == names(FolderSource(str(tmp_path), "train[:80%]"))


def test_other_files_are_left_out_and_counted_with_the_reader_of_formats(tmp_path, caplog):
    write_images(tmp_path / "photos", 3)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "._image000.png").write_bytes(b"no image")
    (tmp_path / "README").write_text("no image")
    write_images(tmp_path / ".thumbnails", 2)
    logging.set_verbosity(logging.INFO)
    with caplog.at_level("INFO", logger="absl"):
        assert len(FolderSource(str(tmp_path), "train")) == 3
        assert "1 .txt, 1 hidden, 1 without extension" in caplog.text
        # One class alone is taken for a folder of folders.
        assert f"set data.data_dir={tmp_path}/photos" in caplog.text
        caplog.clear()
        (tmp_path / "photos" / "photo.HEIC").write_bytes(b"")
        read = features.check("avif")
        if read:
            Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "picture.avif")
        assert len(FolderSource(str(tmp_path), "train")) == 3 + read
    (record,) = [r for r in caplog.records if "left out" in r.message]
    assert record.levelname == "WARNING" and "1 .heic (pillow-heif" in record.message


@pytest.mark.parametrize("train", ["train", "training"])
def test_labels_are_the_training_splits_whatever_its_name(tmp_path, train):
    for name in ("a", "b", "c"):
        write_images(tmp_path / train / name, 2)
    for name in ("a", "c"):
        write_images(tmp_path / "validation" / name, 2)
    (tmp_path / train / "empty").mkdir()
    config = ImagesConfig(source="folder", data_dir=str(tmp_path), train_split=train, image_size=4)
    splits = config.open()
    assert splits.train.class_names == splits.validation.class_names == ("a", "b", "c")
    # Class numbers are the training split's, though its second class is not held out.
    assert sorted(splits.validation.labels(np.arange(4))) == [0, 0, 2, 2]
    write_images(tmp_path / "validation" / "d", 1)
    with pytest.raises(ValueError, match=rf"class folders that \S*/{train} lacks: d"):
        config.open()
    message = message_of(tmp_path, "test", split_key="validation_split")
    assert "data.validation_split" in message and f"{train}, validation" in message


def test_class_of_a_splits_name_is_a_class_among_others(tmp_path, caplog):
    for name in ("bus", "car", "train"):
        write_images(tmp_path / name, 12)
    source = FolderSource(str(tmp_path), "train")
    assert (len(source), source.class_names) == (36, ("bus", "car", "train"))
    assert "the folder 'train' is taken for a class like bus, car" in caplog.text
    # Two names of splits are splits; folders without images do not count.
    (tmp_path / "bus").rename(tmp_path / "validation")
    assert len(FolderSource(str(tmp_path), "train")) == 12
    assert "the folders beside them are left out: car" in caplog.text


def test_links_are_followed_and_each_file_is_read_once(tmp_path, caplog):
    write_images(tmp_path / "elsewhere", 2)
    for name in ("a", "b"):
        write_images(tmp_path / "images" / name, 2)
        os.symlink("..", tmp_path / "images" / name / "up")
    os.symlink(tmp_path / "elsewhere", tmp_path / "images" / "c")
    os.symlink("../b/image000.png", tmp_path / "images" / "a" / "link.png")
    os.link(tmp_path / "images" / "b" / "image001.png", tmp_path / "images" / "b" / "hard.png")
    logging.set_verbosity(logging.INFO)
    with caplog.at_level("INFO", logger="absl"):
        source = FolderSource(str(tmp_path / "images"), "train")
    assert (len(source), source.class_names) == (6, ("a", "b", "c"))
    assert "4 reached a second time by links" in caplog.text


def test_names_that_are_not_utf8_are_read_and_written_with_backslashes(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    write_images(pathlib.Path(folder), 2)
    write_images(tmp_path / "tea", 2)
    source = FolderSource(str(tmp_path), "train")
    assert source.class_names == ("caf\\xe9", "tea")
    assert sorted(record.label for record in source.read(range(4))) == [0, 0, 1, 1]
    " ".join([*source.files(range(4)), source.fingerprint()]).encode()


def test_class_folder_that_cannot_be_listed_is_an_error_and_not_left_out(tmp_path, monkeypatch):
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path / "dog", 2)
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry]:  # permissions do not keep root out
        if os.path.basename(path) == "dog":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = message_of(tmp_path)
    assert message.startswith(f"data.data_dir: the folder {tmp_path / 'dog'} cannot be listed")
    assert message.endswith("Permission denied")


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    assert "data.data_dir is empty" in message_of("")
    assert "does not exist" in message_of(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    assert "is a file, not a folder" in message_of(tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no images" in message_of(empty)
    write_images(empty / "a", 1)
    message = message_of(empty, "validation", split_key="validation_split")
    assert "'train[95%:]' to validate" in message
    assert "data.train_split='train[:9]'" in message_of(empty, "train[:9]")
    write_images(empty, 1)
    assert "image000.png" in message_of(empty)


def test_fingerprint_follows_names_and_order_and_not_the_folder(tmp_path):
    for root in ("one", "other"):
        write_images(tmp_path / root / "a", 3)
        write_images(tmp_path / root / "b", 3)

    def fingerprint(root: str, split: str = "train") -> str:
        return FolderSource(str(tmp_path / root), split).fingerprint()

    first = fingerprint("one")
    assert first == fingerprint("other")
    assert len({first, fingerprint("one", "train[:3]"), fingerprint("one", "train[3:]")}) == 3
    # As many files as before, one of another name.
    (tmp_path / "other" / "a" / "image001.png").rename(tmp_path / "other" / "a" / "image009.png")
    assert fingerprint("other") != first
    # The same files, another class beside them: all labels move.
    for root in ("one", "other"):
        (tmp_path / root).rename(tmp_path / f"{root}-images")
        (tmp_path / root).mkdir()
        (tmp_path / f"{root}-images").rename(tmp_path / root / "validation")
        write_images(tmp_path / root / "train" / "a", 1)
        write_images(tmp_path / root / "train" / "b", 1)
    before = fingerprint("one", "validation")
    write_images(tmp_path / "one" / "train" / "aa", 1)
    assert fingerprint("one", "validation") != before
