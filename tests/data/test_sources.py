"""Records by TFDS name and split, digits, and a message for everything that can be misspelt."""

import io
import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn import datasets

from darl_jax.data.sources import BadRecordError, DigitsSource, TfdsSource, slice_split


def message_of(*args: str, **keywords: str) -> str:
    with pytest.raises(ValueError) as caught:
        TfdsSource(*args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tfds_records_carry_encoded_image_label_and_file_name(tfds_dir: str) -> None:
    source = TfdsSource("imagenet2012", "train", tfds_dir)
    assert (len(source), source.num_classes) == (450, 1000)
    record = source.read([3])[0]
    assert isinstance(record.image, bytes)
    assert Image.open(io.BytesIO(record.image)).size[0] > 32
    assert record.name.endswith(".JPEG")
    names = tfds.builder("imagenet2012", data_dir=tfds_dir).info.features["label"].names
    assert record.name.startswith(names[record.label])


def test_tfds_slices_are_the_same_records_as_in_the_whole_split(tfds_dir: str) -> None:
    whole = [r.name for r in TfdsSource("cifar10", "train", tfds_dir).read(range(60))]
    part = TfdsSource("cifar10:3.0.2", "train[10:50]", tfds_dir)
    assert [r.name for r in part.read(range(40))] == whole[10:50]
    assert len(TfdsSource("cifar10", "train[:90%]", tfds_dir)) == 45_000
    both = TfdsSource("cifar10", "train[10:15]+test[:5]", tfds_dir)
    assert len(both) == 10
    assert [r.name for r in both.read([4, 0])] == [whole[14], whole[10]]


def test_source_goes_to_a_worker_and_reads_the_same(tfds_dir: str) -> None:
    source = TfdsSource("imagenet2012", "train[5:9]", tfds_dir)
    copy = pickle.loads(pickle.dumps(source))
    assert [r.image for r in copy.read([0, 3])] == [r.image for r in source.read([0, 3])]


def test_wrong_name_split_and_folder_are_errors_that_name_the_key(tfds_dir: str) -> None:
    assert "data.name is empty" in message_of("", "train", tfds_dir)
    assert "data.data_dir is empty" in message_of("cifar10", "train", "")
    assert "data.data_dir='/no/such/place'" in message_of("cifar10", "train", "/no/such/place")
    message = message_of("cifar1O", "train", tfds_dir)
    assert "data.name='cifar1O'" in message and "did you mean 'cifar10'?" in message
    message = message_of("cifar10:9.9.9", "train", tfds_dir)
    assert "data.name='cifar10:9.9.9'" in message and "3.0.2" in message
    message = message_of("cifar10", "validation", tfds_dir, split_key="validation_split")
    assert "data.validation_split='validation'" in message
    assert "train (50000 records), test (10000 records)" in message
    for split in ("train[10:", "train[60000:]", "train[5:5]", "train[:99999]", "train[:200%]"):
        assert f"data.train_split='{split}'" in message_of("cifar10", split, tfds_dir)


def as_tfrecord(tfds_dir: str, tmp_path: pathlib.Path, **changes: object) -> pathlib.Path:
    directory = tmp_path / "cifar10" / "3.0.2"
    shutil.copytree(pathlib.Path(tfds_dir) / "cifar10" / "3.0.2", directory)
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps({**info, **changes}))
    return directory


def test_tfrecord_is_an_error_with_the_command_that_converts_it(
    tfds_dir: str, tmp_path: pathlib.Path
) -> None:
    directory = as_tfrecord(tfds_dir, tmp_path, fileFormat="tfrecord")
    message = message_of("cifar10", "train", str(tmp_path))
    assert (
        f"tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record"
        in message
    )


def test_dataset_converted_in_place_is_read(tfds_dir: str, tmp_path: pathlib.Path) -> None:
    # What `tfds convert_format` leaves where no --out_dir is given: both formats side by side.
    as_tfrecord(tfds_dir, tmp_path, fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    source = TfdsSource("cifar10", "test", str(tmp_path))
    copy = pickle.loads(pickle.dumps(source))
    for record in source.read([0, 9_999]) + copy.read([0, 9_999]):
        assert Image.open(io.BytesIO(record.image)).size == (32, 32)


def test_truncated_shard_is_an_error_that_names_split_record_and_shard(
    tfds_dir: str, tmp_path: pathlib.Path
) -> None:
    directory = as_tfrecord(tfds_dir, tmp_path)
    shard = directory / "cifar10-test.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[: 2**20])
    source = TfdsSource("cifar10", "test[100:]", str(tmp_path))
    with pytest.raises(BadRecordError) as caught:
        source.read([9_000])
    assert "cifar10/3.0.2, split 'test[100:]', record 9000" in str(caught.value)
    assert f"{shard.name}, record 9100 of it" in str(caught.value)


def test_missing_shard_is_an_error_that_names_it(tfds_dir: str, tmp_path: pathlib.Path) -> None:
    directory = as_tfrecord(tfds_dir, tmp_path)
    shard = directory / "cifar10-test.array_record-00000-of-00001"
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        TfdsSource("cifar10", "test", str(tmp_path)).read([0])


def test_bad_record_error_survives_the_way_back_from_a_worker() -> None:
    error = BadRecordError("animals", "train[:9]", 3, "cat/1.jpg", "it is empty")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    for part in ("animals", "'train[:9]'", "record 3", "cat/1.jpg", "it is empty"):
        assert part in str(error)
    # Removing a record would change the order of the data, and a resumed run is then refused.
    assert str(error).endswith("; repair it, or set data.on_bad_record='skip'")
    assert isinstance(error, ValueError)


def test_digits_splits_are_disjoint_complete_and_hold_all_classes() -> None:
    train, validation = DigitsSource("train"), DigitsSource("validation")
    assert (len(train), len(validation)) == (1297, 500)
    records = train.read(range(1297)) + validation.read(range(500))
    assert len({record.name for record in records}) == 1797
    images = np.stack([record.image for record in records])
    # The same multiset of pixels and labels as scikit-learn's, at 255/16 of its scale.
    original = datasets.load_digits()
    assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1)
    assert images.min() == 0 and images.max() == 255
    np.testing.assert_array_equal(
        np.bincount(np.rint(images / (255 / 16)).astype(int).ravel()),
        np.bincount(original.images.astype(int).ravel()),
    )
    number = int(records[0].name.split()[-1])
    np.testing.assert_array_equal(
        images[0, ..., 0], np.rint(original.images[number] * 255 / 16).astype(np.uint8)
    )
    assert records[0].label == original.target[number]
    share = np.bincount([r.label for r in validation.read(range(500))], minlength=10) / 500
    assert share.min() > 0.07 and share.max() < 0.13


def test_digits_slices_are_parts_of_their_split() -> None:
    whole = [r.name for r in DigitsSource("validation").read(range(500))]
    assert [r.name for r in DigitsSource("validation[:10]").read(range(10))] == whole[:10]
    assert [r.name for r in DigitsSource("validation[98%:]").read(range(10))] == whole[490:]
    with pytest.raises(ValueError, match=r"data.train_split='test'.*train \(1297 records\)"):
        DigitsSource("test")


def test_slices_equal_tfds_own(tfds_dir: str) -> None:
    lengths = {"train": 450, "validation": 50}
    splits = ("train", "train[:33%]", "train[-7:]", "train[10:50]+train[60:61]", "train[17%:18%]")
    names = [r.name for r in TfdsSource("imagenet2012", "train", tfds_dir).read(range(450))]
    for split in splits:
        index = slice_split(split, lengths, "train_split")
        part = TfdsSource("imagenet2012", split, tfds_dir)
        assert [r.name for r in part.read(range(len(part)))] == [names[i] for i in index]
