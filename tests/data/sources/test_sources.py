"""Records by TFDS name and split, digits, and a message for everything that can be misspelled."""

import io
import json
import pathlib
import pickle
import re
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from sklearn import datasets

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.decode import HostImage
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.sources.base import BadRecordError, slice_split
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.data.sources.tfds import TfdsSource


def message_of(*args: str, **keywords: str) -> str:
    with pytest.raises(ValueError) as caught:
        TfdsSource(*args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tfds_records_carry_encoded_image_label_and_file_name(tfds_dir):
    source = TfdsSource("imagenet2012", "train", tfds_dir)
    assert (len(source), len(source.class_names)) == (450, 1000)
    record = source.read([3])[0]
    assert isinstance(record.image, bytes)
    assert Image.open(io.BytesIO(record.image)).size[0] > 32
    assert record.name.endswith(".JPEG")
    assert record.name.startswith(source.class_names[record.label])


def test_slices_are_the_same_records_as_in_the_whole_split(tfds_dir):
    lengths = {"train": 450, "validation": 50}
    names = [r.name for r in TfdsSource("imagenet2012", "train", tfds_dir).read(range(450))]
    for split in ("train", "train[:33%]", "train[-7:]", "train[17%:18%]+train[60:61]"):
        index = slice_split(split, lengths, "train_split")
        part = TfdsSource("imagenet2012", split, tfds_dir)
        assert [r.name for r in part.read(range(len(part)))] == [names[i] for i in index]
    assert len(TfdsSource("cifar10:3.0.2", "train[:90%]", tfds_dir)) == 45_000
    whole = TfdsSource("cifar10", "train", tfds_dir)
    both = TfdsSource("cifar10", "train[10:15]+test[:5]", tfds_dir)
    assert len(both) == 10
    assert [r.name for r in both.read([4, 0])] == [r.name for r in whole.read([14, 10])]


def test_wrong_name_split_and_folder_are_errors_that_name_the_key(tfds_dir):
    assert "data.dataset is empty" in message_of("", "train", tfds_dir)
    assert "data.data_dir is empty" in message_of("cifar10", "train", "")
    assert "data.data_dir='/no/such/place'" in message_of("cifar10", "train", "/no/such/place")
    message = message_of("cifar1O", "train", tfds_dir)
    assert "data.dataset='cifar1O'" in message and "did you mean 'cifar10'?" in message
    message = message_of("cifar10:9.9.9", "train", tfds_dir)
    assert "data.dataset='cifar10:9.9.9'" in message and "3.0.2" in message
    message = message_of("cifar10", "validation", tfds_dir, split_key="validation_split")
    assert "data.validation_split='validation'" in message
    assert "train (50000 records), test (10000 records)" in message
    for split in ("train[10:", "train[60000:]", "train[5:5]", "train[:99999]", "train[:200%]"):
        assert f"data.train_split='{split}'" in message_of("cifar10", split, tfds_dir)


class Colors(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png")}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for i in range(40):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (i, i, i)).save(buffer, "PNG")
            buffer.seek(0)
            yield i, {"image": buffer}


@pytest.fixture
def prepared(tmp_path: pathlib.Path) -> pathlib.Path:
    """A dataset of 40 records in four shards, as TFDS prepares it; the folder of its version."""
    builder = Colors(data_dir=tmp_path, file_format="array_record")
    options = tfds.download.DownloadConfig(num_shards=4)
    builder.download_and_prepare(download_config=options)
    return pathlib.Path(builder.data_path)


def rewrite(prepared: pathlib.Path, **changes: object) -> None:
    info = json.loads((prepared / "dataset_info.json").read_text())
    (prepared / "dataset_info.json").write_text(json.dumps(info | changes))


def test_tfrecord_is_an_error_with_the_command_that_converts_it_and_is_read_then(prepared):
    root = str(prepared.parents[1])
    rewrite(prepared, fileFormat="tfrecord")
    command = f"tfds convert_format --dataset_version_dir={prepared} --out_file_format=array_record"
    assert command in message_of("colors", "train", root)
    # As it leaves them where no --out_dir is given: both formats side by side.
    rewrite(prepared, alternativeFileFormats=["array_record"])
    source = TfdsSource("colors", "train", root)
    copy = pickle.loads(pickle.dumps(source))
    for record in source.read([0, 39]) + copy.read([0, 39]):
        assert Image.open(io.BytesIO(record.image)).size == (8, 8)


def test_damaged_shards_are_an_error_at_the_start_that_names_them(prepared):
    root = str(prepared.parents[1])
    shards = sorted(prepared.glob("*train*"))
    assert len(shards) == 4
    assert len(TfdsSource("colors", "train", root)) == 40
    whole = {shard: shard.read_bytes() for shard in shards}
    cut = [0, 1000, 65536, len(whole[shards[2]]) - 65536, len(whole[shards[2]]) - 1]
    for length in cut:
        shards[2].write_bytes(whole[shards[2]][:length])
        message = message_of("colors", "train", root)
        assert message.startswith("colors/1.0.0, split 'train': 1 of 4 shards in")
        assert f"{shards[2].name} (its end cannot be read" in message
        assert "copy them again" in message and "data.on_bad_record='skip'" in message
    shards[0].unlink()
    message = message_of("colors", "train", root)
    assert "2 of 4 shards" in message and f"{shards[0].name} (it is missing)" in message
    # A split that does not read them is none the worse.
    assert len(TfdsSource("colors", "train[10:20]", root)) == 10
    shards[0].write_bytes(whole[shards[0]])
    shards[2].write_bytes(whole[shards[2]])
    # A shard of another preparation, whole in itself.
    count = len(TfdsSource("colors", "train[:10]", root))
    writer = array_record_module.ArrayRecordWriter(str(shards[1]), "group_size:1")
    writer.write(b"another")
    writer.close()
    assert count == 10
    assert f"{shards[1].name} (it holds 1 records" in message_of("colors", "train", root)


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_with_skip_the_records_of_damaged_shards_are_replaced_by_others(prepared, damage, caplog):
    root = str(prepared.parents[1])
    whole = TfdsSource("colors", "train", root)
    lost = set(whole.files(range(10)))
    shard = prepared / lost.pop()
    assert not lost
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: 2**16])
    source = TfdsSource("colors", "train", root, skip_bad=True)
    assert shard.name in caplog.text and "replaced by others" in caplog.text

    def pixels(image: HostImage) -> np.ndarray:
        return image.pixels(3)

    split = ImageSplit(source, ImagesConfig(on_bad_record="skip"))
    decoded = split.decode_records(np.arange(40), pixels)
    assert [d.replaced for d in decoded] == [True] * 10 + [False] * 30
    for number in range(10, 40):
        expected = np.asarray(Image.open(io.BytesIO(whole.read([number])[0].image)))
        np.testing.assert_array_equal(decoded[number].pixels, expected)
    with pytest.raises(BadRecordError, match=rf"record 3 \({shard.name}, record 3 of it\)"):
        source.read([3])


def test_shard_that_is_damaged_while_the_run_goes_on_is_a_bad_record(prepared):
    source = TfdsSource("colors", "train[5:]", str(prepared.parents[1]))
    shard = prepared / source.files([0])[0]
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(BadRecordError) as caught:
        source.read([2])
    assert "colors/1.0.0, split 'train[5:]', record 2" in str(caught.value)
    assert f"{shard.name}, record 7 of it" in str(caught.value)


def test_fingerprint_follows_the_records_and_not_the_folder(tfds_dir, prepared, tmp_path):
    root = prepared.parents[1]
    one = TfdsSource("colors", "train", str(root))
    shutil.copytree(root / "colors", tmp_path / "elsewhere" / "colors")
    other = TfdsSource("colors:1.0.0", "train", str(tmp_path / "elsewhere"))
    assert one.fingerprint() == other.fingerprint() == pickle.loads(pickle.dumps(one)).fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", one.fingerprint())
    sources = [
        one,
        TfdsSource("colors", "train[:30]", str(root)),
        TfdsSource("colors", "train[10:]", str(root)),
        TfdsSource("colors", "train[10:]+train[:10]", str(root)),
        TfdsSource("cifar10", "train", tfds_dir),
        TfdsSource("cifar10", "test", tfds_dir),
        DigitsSource("train"),
        DigitsSource("validation"),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    # The same number of records, parted otherwise: the shuffling of a preparation differs.
    (split,) = json.loads((prepared / "dataset_info.json").read_text())["splits"]
    assert split["shardLengths"] == ["10", "10", "10", "10"]
    rewrite(prepared, splits=[split | {"shardLengths": ["10", "9", "11", "10"]}])
    assert TfdsSource("colors", "train", str(root), skip_bad=True).fingerprint() not in {
        source.fingerprint() for source in sources
    }


def test_bad_record_error_survives_the_way_back_from_a_worker():
    error = BadRecordError("animals", "train[:9]", 3, "cat/1.jpg", "it is empty")
    assert str(error).endswith("record 3 (cat/1.jpg) cannot be decoded: it is empty")
    # Removing a record would change the order of the data, and a resumed run is then refused.
    copy = pickle.loads(pickle.dumps(error.advising("repair it")))
    assert str(copy) == f"{error}; repair it"
    assert isinstance(copy, ValueError)


def test_digits_splits_are_disjoint_complete_and_hold_all_classes():
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
