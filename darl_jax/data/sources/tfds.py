"""TFDS datasets that were prepared as ArrayRecord, read without TensorFlow."""

import difflib
import json
import re
from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from darl_jax.data.base import fingerprint_of
from darl_jax.data.sources.base import BadRecordError, Record, slice_split
from darl_jax.data.sources.shards import check_shards


class TfdsSource:
    """A split of a TFDS dataset that was prepared as ArrayRecord, read without TensorFlow."""

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str,
        *,
        split_key: str = "train_split",
        skip_bad: bool = False,
    ):
        """Reads the dataset's metadata and the end of each of the split's shards.

        Args:
          name: as TFDS writes it: "imagenet2012", "cifar10:3.0.2", "dataset/config:version".
          split: TFDS's split syntax, slices too.
          data_dir: the folder or bucket that holds the dataset's own folder.
          split_key: the config key that the split comes from, for messages.
          skip_bad: shards that are missing or cut off are logged, and no error.

        Raises:
          ValueError: what the config names is not there, or cannot be read.
        """
        directory = _tfds_directory(name, data_dir)
        _check_format(directory)
        builder = tfds.builder_from_directory(directory)
        self.dataset = builder.info.full_name
        self.split = split
        features = builder.info.features
        if "image" not in features:
            raise ValueError(
                f"data.dataset='{name}' has no feature 'image' to train on; it has "
                f"{', '.join(sorted(features))}"
            )
        # A dict in all but `get`.
        label = features["label"] if "label" in features else None  # noqa: SIM401
        # TFDS names classes by their numbers where it has no names.
        self.class_names: tuple[str, ...] = tuple(getattr(label, "names", None) or ())
        lengths = {key: info.num_examples for key, info in builder.info.splits.items()}
        slice_split(split, lengths, split_key)  # raises where it is none
        try:
            self._records = builder.as_data_source(
                split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"data.dataset='{name}' cannot be opened in {directory}: {_one_line(error)}"
            ) from error

        self._instructions = builder.info.splits[split].file_instructions
        expected = {epath.Path(i.filename).name: i.examples_in_shard for i in self._instructions}
        what = f"{self.dataset}, split '{self.split}'"
        check_shards(what, directory, expected, skip_bad=skip_bad)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: Sequence[int]) -> list[Record]:
        """The records of these numbers, read from their shards in parallel."""
        try:
            examples = self._records.__getitems__(list(index))
        except Exception as error:  # ArrayRecord's readers raise types of C++'s own on bad shards.
            if len(index) == 1:
                raise self._bad(index[0], error) from error
            return [self.read([i])[0] for i in index]
        # Of a file that is cut off ArrayRecord may return empty records and no error.
        for i, example in zip(index, examples, strict=True):
            if not isinstance(example["image"], bytes):
                raise self._bad(i, ValueError("it is empty, so its shard may be cut off"))
        labels = [int(e["label"]) if self.class_names else -1 for e in examples]
        return [
            Record(example["image"], label, self._name(i, example))
            for i, example, label in zip(index, examples, labels, strict=True)
        ]

    def files(self, index: Sequence[int]) -> list[str]:
        """The shards of these records."""
        return sorted({self._place(i)[0] for i in index})

    def fingerprint(self) -> str:
        """Hash of the dataset's name and version and of the lengths of the split's shards."""
        shards = [
            f"{epath.Path(part.filename).name} {part.skip} {part.take} {part.examples_in_shard}"
            for part in self._instructions
        ]
        return fingerprint_of(self.dataset, *shards)

    def _name(self, index: int, example: dict) -> str:
        for key in ("file_name", "filename", "image/filename", "id"):
            value = example.get(key)
            if isinstance(value, bytes):
                return value.decode("utf-8", "replace")
        return self._shard(index)

    def _shard(self, index: int) -> str:
        shard, place = self._place(index)
        return f"{shard}, record {place} of it"

    def _place(self, index: int) -> tuple[str, int]:
        """(shard, the record's number in it)."""
        for instruction in self._instructions:
            if index < instruction.take:
                return epath.Path(instruction.filename).name, instruction.skip + index
            index -= instruction.take
        raise IndexError(f"{self.dataset} has {len(self)} records, not {index}")

    def _bad(self, index: int, error: Exception) -> BadRecordError:
        return BadRecordError(self.dataset, self.split, index, self._shard(index), _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _tfds_directory(name: str, data_dir: str) -> epath.Path:
    """The folder of the newest prepared version that `name` allows."""
    if not name:
        raise ValueError("data.dataset is empty: it names the TFDS dataset, for example 'cifar10'")
    if not data_dir:
        raise ValueError(
            f"data.data_dir is empty: it is the folder or bucket that holds '{name}' as TFDS "
            "prepared it"
        )
    root = epath.Path(data_dir).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.data_dir='{data_dir}' is no folder that can be read")
    path, _, version = name.partition(":")
    dataset, _, config = path.partition("/")
    if not (root / dataset).is_dir():
        there = sorted(p.name for p in root.iterdir() if not p.name.startswith(".") and p.is_dir())
        close = difflib.get_close_matches(dataset, there, n=1)
        guess = f"; did you mean '{close[0]}'?" if close else "."
        raise ValueError(
            f"data.dataset='{name}': data.data_dir='{root}' has no folder '{dataset}'{guess} "
            f"It holds: {', '.join(there[:20]) or 'no folders'}"
        )
    prepared = sorted(
        "/".join(info.parent.relative_to(root / dataset).parts)
        for pattern in ("*/dataset_info.json", "*/*/dataset_info.json")
        for info in (root / dataset).glob(pattern)
    )
    matching = [
        there
        for there in prepared
        if (not config or there.startswith(f"{config}/"))
        and (not version or there.split("/")[-1] == version)
    ]
    if len({there.rpartition("/")[0] for there in matching}) != 1:
        trouble = "names several configs" if matching else "is not prepared"
        raise ValueError(
            f"data.dataset='{name}' {trouble} in {root / dataset}; what is prepared there: "
            f"{', '.join(prepared) or 'nothing (no folder with a dataset_info.json)'}"
        )
    return root / dataset / max(matching, key=_version_number)


def _version_number(path: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path.rpartition("/")[2]))


def _check_format(directory: epath.Path) -> None:
    info = json.loads((directory / "dataset_info.json").read_text())
    formats = {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])}
    if "array_record" not in formats:
        raise ValueError(
            f"{directory} was prepared as {', '.join(sorted(formats))}, and random access needs "
            "ArrayRecord; where TensorFlow is installed this converts it in place: tfds "
            f"convert_format --dataset_version_dir={directory} --out_file_format=array_record"
        )
