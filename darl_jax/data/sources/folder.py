"""A folder of images as a dataset, with no preparation step."""

import functools
import os
from collections.abc import Sequence
from multiprocessing import pool

import numpy as np
from absl import logging
from etils import epath

from darl_jax.data import order
from darl_jax.data.base import fingerprint_of
from darl_jax.data.sources import base as sources
from darl_jax.data.sources.listing import holds_images, list_images

# Folders of these names are splits, not classes.
SPLIT_NAMES = frozenset(("train", "training", "validation", "valid", "val", "test"))
_READ_THREADS = 8


class FolderSource:
    """Images in a folder, one sub-folder for each class or all in one.

    A split is the sub-folder of its name; where there are no such sub-folders, "train" is the whole
    folder, and a validation set is a slice of it ('train[:95%]' and 'train[95%:]'). Classes are
    the names of the sub-folders in alphabetical order, those of the training split where that is a
    folder of its own; images deeper down belong to the class at the top.

    The files are sorted by path and then put in a fixed pseudo-random order, so that a slice holds
    all classes. Adding a file changes that order.
    """

    def __init__(
        self,
        data_dir: str,
        split: str,
        *,
        split_key: str = "train_split",
        train_split: str = "train",
    ):
        """Lists the files; images are read when they are asked for.

        Args:
          data_dir: folder or bucket.
          split: TFDS's split syntax.
          split_key: the config key that the split comes from, for messages.
          train_split: the split whose classes number the labels.

        Raises:
          ValueError: the folder is not as it should be, or has no such split.
        """
        root = _root(data_dir)
        base = sources.base_split(split)
        folders = _split_folders(root, log=split_key == "train_split")
        directory = _split_directory(root, folders, base, split_key)
        try:
            train_base = sources.base_split(train_split)
            train = _split_directory(root, folders, train_base, "train_split")
        except ValueError:  # A split without a training split numbers its own classes.
            train = directory
        paths = list_images(directory, log=split_key == "train_split" or directory != train)
        self.dataset = _text(str(root))
        self.split = split
        classes = _classes(directory, train, paths)
        self.class_names = tuple(map(_text, classes))
        self._root = str(directory)
        self._number = {name: number for number, name in enumerate(classes)}
        # A million Python strings are ten times as large as their bytes in one array.
        self._paths = np.array([os.fsencode(path) for path in paths])
        chosen = sources.slice_split(split, {base: len(paths)}, split_key)
        self._files = order.permute(chosen, len(paths), order.STREAM_FILES)
        text, shown = "%s, split '%s': %d images, %d classes %s", self.class_names
        logging.info(text, self.dataset, split, len(self), len(shown), sources.as_names(shown, 5))
        if len(classes) == 1 and directory == train and split_key == "train_split":
            logging.warning(
                "%s: all images lie in the one folder '%s', which is then the only class; if it "
                "holds the classes, set data.data_dir=%s/%s",
                *(self.dataset, self.class_names[0], self.dataset, self.class_names[0]),
            )

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: Sequence[int]) -> list[sources.Record]:
        """The files of these numbers."""
        if len(index) == 1:
            return [self._read(index[0])]
        return _reading_threads().map(self._read, index)

    def files(self, index: Sequence[int]) -> list[str]:
        """Their paths below the split's folder."""
        return [_text(self._path(number)) for number in index]

    def fingerprint(self) -> str:
        """Hash of the relative paths in their order and of the classes' names."""
        return fingerprint_of(
            self._paths.dtype.str, self._paths.tobytes(), self._files.tobytes(), *self._number
        )

    def _path(self, index: int) -> str:
        return os.fsdecode(bytes(self._paths[self._files[index]]))

    def _read(self, index: int) -> sources.Record:
        path = self._path(index)
        try:
            content = (epath.Path(self._root) / path).read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise sources.BadRecordError(
                self.dataset, self.split, int(index), _text(path), reason
            ) from error
        label = self._number[path.split("/", 1)[0]] if self._number else -1
        return sources.Record(content, label, _text(path))


@functools.cache
def _reading_threads() -> pool.ThreadPool:
    """Threads of this process that read files; a program's end does not wait for them."""
    return pool.ThreadPool(_READ_THREADS)


def _root(data_dir: str) -> epath.Path:
    if not data_dir:
        raise ValueError("data.data_dir is empty: it is the folder that holds the images")
    root = epath.Path(data_dir).expanduser()
    if not root.is_dir():
        problem = "is a file, not a folder of images" if root.exists() else "does not exist"
        raise ValueError(f"data.data_dir='{data_dir}' {problem}")
    return root


def _sub_folders(directory: epath.Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name[0] != "." and p.is_dir())


def _split_directory(root: epath.Path, splits: list[str], base: str, split_key: str) -> epath.Path:
    """The folder of a split: a sub-folder, or the whole folder."""
    if base in splits or (base not in SPLIT_NAMES and (root / base).is_dir()):
        return root / base
    if splits:
        raise ValueError(
            f"data.{split_key}: {root} has no folder '{base}'; its splits are {', '.join(splits)}"
        )
    if base != "train":
        raise ValueError(
            f"data.{split_key}: {root} has no folder of a split '{base}', so that only 'train' "
            "exists, which is the whole folder; slice it: 'train[:95%]' to train and 'train[95%:]' "
            "to validate"
        )
    return root


def _split_folders(root: epath.Path, *, log: bool) -> list[str]:
    """Sub-folders that are splits: those of a split's name, unless one is a class among others."""
    there = _sub_folders(root)
    splits = sorted(SPLIT_NAMES.intersection(there))
    if not splits:
        return []
    others = [name for name in there if name not in SPLIT_NAMES and holds_images(root / name)]
    if others and len(splits) == 1:
        if log:
            logging.warning(
                "%s: the folder '%s' is taken for a class like %s, not for a split; if it is a "
                "split, move the others elsewhere",
                *(root, splits[0], sources.as_names(others, 5)),
            )
        return []
    if others and log:
        logging.warning(
            "%s: its splits are %s; the folders beside them are left out: %s",
            *(root, ", ".join(splits), sources.as_names(others, 5)),
        )
    return splits


def _text(name: str) -> str:
    """A path that can be written as UTF-8; other bytes than that become backslash sequences."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _classes(directory: epath.Path, train: epath.Path, paths: list[str]) -> list[str]:
    """Class folders of the training split, in alphabetical order."""
    own = {path.split("/", 1)[0] for path in paths if "/" in path}
    loose = next((path for path in paths if "/" not in path), None)
    if own and loose:
        raise ValueError(
            f"{directory} holds images both in class folders ({sources.as_names(own, 3)}) and "
            f"beside them ({loose}); move the loose ones into a folder or the folders elsewhere"
        )
    if not own or directory == train:
        return sorted(own)
    classes = [name for name in _sub_folders(train) if holds_images(train / name)]
    unknown = own.difference(classes)
    if unknown:
        raise ValueError(
            f"{directory} has class folders that {train} lacks: {sources.as_names(unknown)}"
        )
    return classes
