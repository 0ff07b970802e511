"""Which record goes where is a function of (seed, step), and nothing is lost or counted twice."""

import dataclasses
import pathlib
import time

import numpy as np
import pytest
from PIL import Image

from darl_jax.data import pipeline
from darl_jax.data.base import Batch, Split
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.memory import MemorySplit
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.pipeline import eval_batches, train_batches
from darl_jax.data.sources.base import BadRecordError
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.data.sources.folder import FolderSource

DIGITS = ImagesConfig(
    source="digits", image_size=8, channels=1, mean=(0.5,), std=(0.5,), num_workers=0
)


def take(batches: pipeline.Batches, count: int) -> list[Batch]:
    with batches:
        return [next(batches) for _ in range(count)]


def joined(batches: list[Batch], key: str) -> np.ndarray:
    return np.concatenate([batch[key] for batch in batches])


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def digits(split: str, config: ImagesConfig = DIGITS) -> Split:
    by_record = ImageSplit(DigitsSource(split), config)
    return MemorySplit(by_record) if config.in_memory else by_record


@pytest.fixture(scope="module", params=["by record", "in memory"])
def train(request: pytest.FixtureRequest) -> Split:
    return digits("train", dataclasses.replace(DIGITS, in_memory=request.param == "in memory"))


def test_each_epoch_holds_every_record_once_in_an_order_of_its_own(train) -> None:
    # 1297 = 13 steps of 100 less 3 rows: epochs meet inside a batch.
    index = joined(
        take(train_batches(train, DIGITS, batch_size=100, seed=0, start_step=0), 26), "index"
    )
    first, second = index[:1297], index[1297:2594]
    np.testing.assert_array_equal(np.sort(first), np.arange(1297))
    np.testing.assert_array_equal(np.sort(second), np.arange(1297))
    assert (first == second).mean() < 0.02


def test_resuming_at_a_step_gives_the_batches_of_the_run_that_never_stopped_at_once(train) -> None:
    whole = take(train_batches(train, DIGITS, batch_size=70, seed=5, start_step=0), 22)
    for step in (1, 18, 19, 21):
        resumed = take(train_batches(train, DIGITS, batch_size=70, seed=5, start_step=step), 1)
        assert_equal(resumed[0], whole[step])
    began = time.monotonic()
    (batch,) = take(train_batches(train, DIGITS, batch_size=64, seed=0, start_step=10**9), 1)
    assert time.monotonic() - began < 30
    expected = pipeline.records_of_step(train, batch_size=64, seed=0, step=10**9 + 1)
    np.testing.assert_array_equal(batch["index"], expected)


def test_global_batches_are_the_same_for_any_number_of_processes(train) -> None:
    process_count = 4
    alone = take(train_batches(train, DIGITS, batch_size=72, seed=1, start_step=17), 3)
    parts = [
        take(
            train_batches(
                train, DIGITS, batch_size=72, seed=1, start_step=17,
                process_index=index, process_count=process_count,
            ),
            3,
        )
        for index in range(process_count)
    ]  # fmt: skip
    for step in range(3):
        together = {key: joined([part[step] for part in parts], key) for key in alone[step]}
        assert_equal(together, alone[step])


def test_another_seed_gives_another_order_and_another_epoch_another_crop(train) -> None:
    one = take(train_batches(train, DIGITS, batch_size=1297, seed=0, start_step=0), 2)
    other = take(train_batches(train, DIGITS, batch_size=1297, seed=1, start_step=0), 1)
    assert (one[0]["index"] == other[0]["index"]).mean() < 0.02
    first, second = (batch["image"][np.argsort(batch["index"])] for batch in one)
    assert (first == second).all(axis=(1, 2, 3)).mean() < 0.05


@pytest.mark.parametrize(("process_count", "batch_size"), [(1, 100), (2, 512), (4, 64)])
def test_evaluation_counts_every_example_exactly_once(process_count: int, batch_size: int) -> None:
    for in_memory in (False, True):
        source = digits("validation", dataclasses.replace(DIGITS, in_memory=in_memory))
        parts = [
            list(
                eval_batches(
                    source, DIGITS, batch_size=batch_size,
                    process_index=index, process_count=process_count,
                )
            )
            for index in range(process_count)
        ]  # fmt: skip
        assert len({len(part) for part in parts}) == 1
        batches = [
            {key: joined([part[step] for part in parts], key) for key in parts[0][step]}
            for step in range(len(parts[0]))
        ]
        assert {len(batch["mask"]) for batch in batches} == {batch_size}
        mask = joined(batches, "mask")
        np.testing.assert_array_equal(joined(batches, "index")[mask], np.arange(500))
        labels = [record.label for record in DigitsSource("validation").read(range(500))]
        np.testing.assert_array_equal(joined(batches, "label")[mask], labels)
        assert not joined(batches, "image")[~mask].any()
        assert (joined(batches, "index")[~mask] == -1).all()


def test_evaluation_crops_the_center_and_never_flips() -> None:
    config = dataclasses.replace(DIGITS, eval_crop=1.0)
    (batch,) = eval_batches(digits("validation", config), config, batch_size=500)
    stored = np.stack([record.image for record in DigitsSource("validation").read(range(500))])
    np.testing.assert_array_equal(batch["image"], stored)


def test_batch_that_does_not_divide_is_an_error() -> None:
    source = digits("train")
    with pytest.raises(ValueError, match=r"batch_size is 10.*multiple of the 4 processes"):
        train_batches(source, DIGITS, batch_size=10, seed=0, start_step=0, process_count=4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        eval_batches(source, DIGITS, batch_size=0)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Sixteen images, of which one is cut off."""
    rng = np.random.default_rng(0)
    for i in range(16):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.jpg")
    content = (tmp_path / "05.jpg").read_bytes()
    (tmp_path / "05.jpg").write_bytes(content[: len(content) // 2])
    return tmp_path


def bad_index(source: FolderSource) -> int:
    return source.files(range(len(source))).index("05.jpg")


CONFIG = ImagesConfig(source="folder", image_size=16, num_workers=0)
SKIP = dataclasses.replace(CONFIG, on_bad_record="skip")


def test_corrupt_file_is_an_error_that_names_dataset_split_index_and_file(folder) -> None:
    source = FolderSource(str(folder), "train")
    with pytest.raises(BadRecordError) as caught:
        list(eval_batches(ImageSplit(source, CONFIG), CONFIG, batch_size=4))
    message = str(caught.value)
    record = f"record {bad_index(source)}"
    for part in (str(folder), "split 'train'", record, "05.jpg", "runcated"):
        assert part in message
    assert "\n" not in message and "data.on_bad_record='skip'" in message


def test_skipped_record_is_replaced_by_the_same_one_every_time_and_marked(folder) -> None:
    config = dataclasses.replace(SKIP, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    source = FolderSource(str(folder), "train")
    bad = bad_index(source)
    by_record = ImageSplit(source, config)
    seen = []
    for train, seed in ((by_record, 0), (by_record, 1), (MemorySplit(by_record), 0)):
        for batch in take(train_batches(train, config, batch_size=16, seed=seed, start_step=0), 2):
            np.testing.assert_array_equal(batch["replaced"], batch["index"] == bad)
            assert batch["mask"].all()
            images = {
                int(i): image for i, image in zip(batch["index"], batch["image"], strict=True)
            }
            substitutes = [i for i in images if i != bad and (images[i] == images[bad]).all()]
            assert len(substitutes) == 1
            seen += substitutes
    assert len(set(seen)) == 1


def test_skipped_record_is_not_counted_in_evaluation(folder) -> None:
    by_record = ImageSplit(FolderSource(str(folder), "train"), SKIP)
    bad = bad_index(by_record.source)
    for held in (by_record, MemorySplit(by_record)):
        batches = list(eval_batches(held, SKIP, batch_size=10))
        index, mask = joined(batches, "index"), joined(batches, "mask")
        replaced = joined(batches, "replaced")
        assert index[mask].tolist() == [i for i in range(16) if i != bad]
        assert index[replaced].tolist() == [bad]
        assert not joined(batches, "image")[~mask].any()


def test_folder_with_nothing_that_decodes_is_an_error_and_no_endless_search(tmp_path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    split = ImageSplit(FolderSource(str(tmp_path), "train"), SKIP)
    with pytest.raises(BadRecordError, match="so are 100 others in its place"):
        take(train_batches(split, SKIP, batch_size=2, seed=0, start_step=0), 1)


def test_both_splits_are_checked_before_training(folder) -> None:
    good = ImagesConfig(source="digits", image_size=8, channels=1, mean=(0.5,), std=(0.5,))
    train, validation = good.open()
    assert (len(train), len(validation)) == (1297, 500)
    with pytest.raises(ValueError, match=r"data\.validation_split='test'"):
        dataclasses.replace(good, validation_split="test").open()
    held = dataclasses.replace(good, in_memory=True).open()
    assert held.train.in_memory and held.validation.in_memory
    source = FolderSource(str(folder), "train")
    bad = bad_index(source)
    config = ImagesConfig(
        source="folder", data_dir=str(folder), image_size=8,
        train_split="train[:2]" if bad > 1 else "train[-2:]", validation_split=f"train[{bad}:]",
    )  # fmt: skip
    with pytest.raises(BadRecordError, match=r"record 0 \(05\.jpg\)"):
        config.open()
    dataclasses.replace(config, on_bad_record="skip").open()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "hub"}, "data.source is 'hub'; it must be one of 'tfds', 'folder', 'digits'"),
        ({"channels": 1}, "data.mean has 3 values and data.channels is 1"),
        ({"on_bad_record": "ignore"}, "data.on_bad_record"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"crop_scale": (0.5, 0.2)}, "data.crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "data.crop_ratio"),
        (
            {"mean": (124.0, 116.0, 104.0)},
            "data.mean is (124.0, 116.0, 104.0); it must be in units",
        ),
        ({"std": (58.0, 57.0, 57.0)}, "data.std is (58.0, 57.0, 57.0); it must be positive"),
    ],
)
def test_impossible_config_is_an_error_that_names_the_key(changes: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        ImagesConfig(**changes)
    assert words in str(caught.value)
