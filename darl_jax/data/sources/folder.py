"""A folder of images as a dataset, with no preparation step."""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import pool
from typing import NoReturn

import numpy as np
from absl import logging
from etils import epath

from darl_jax.data import order
from darl_jax.data.base import fingerprint_of
from darl_jax.data.sources import base as sources

EXTENSIONS = frozenset(
    ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
# Folders of these names are splits, not classes.
SPLIT_NAMES = frozenset(("train", "training", "validation", "valid", "val", "test"))
_READ_THREADS = 8


class FolderSource:
    """Images in a folder, one sub-folder for each class or all in one.

    A split is the sub-folder of its name, where there is one; otherwise "train" is the whole
    folder, and a validation set is a slice of it ('train[:95%]' and 'train[95%:]'). Classes are
    the names of the sub-folders in alphabetical order, those of the train split where there is one;
    images deeper down belong to the class at the top.

    The files are sorted by path and then put in a fixed pseudo-random order, so that a slice holds
    all classes. Adding a file changes that order.
    """

    def __init__(self, data_dir: str, split: str, *, split_key: str = "train_split"):
        """Lists the files; images are read when they are asked for.

        Args:
          data_dir: folder or bucket.
          split: TFDS's split syntax.
          split_key: the config key that the split comes from, for messages.

        Raises:
          ValueError: there is no such folder or split, no image in it, a folder in it that cannot
            be listed, images both beside and inside class folders, or a class that the train split
            lacks.
        """
        root = _root(data_dir)
        base = sources.base_split(split)
        directory = _split_directory(root, base, split_key)
        paths, skipped = _list_images(directory)
        if not paths:
            raise ValueError(
                f"{directory} holds no images (left out: {_count(skipped)}); images end in "
                f"{' '.join(sorted(EXTENSIONS))}"
            )
        if skipped:
            logging.info("%s: left out %s that are no images", directory, _count(skipped))
        self.dataset = str(root)
        self.split = split
        self.class_names = _classes(root, directory, paths)
        self._root = str(directory)
        self._number = {name: number for number, name in enumerate(self.class_names)}
        # A million Python strings are ten times as large as their bytes in one array.
        self._paths = np.array([os.fsencode(path) for path in sorted(paths)])
        chosen = sources.slice_split(split, {base: len(paths)}, split_key)
        self._files = order.permute(chosen, len(paths), order.STREAM_FILES)
        logging.info(
            "%s, split '%s': %d images, %s",
            root,
            split,
            len(self),
            f"{len(self.class_names)} classes" if self.class_names else "no class folders",
        )

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: Sequence[int]) -> list[sources.Record]:
        """The files of these numbers.

        Raises:
          BadRecordError: a file cannot be read.
        """
        if len(index) == 1:
            return [self._read(index[0])]
        return _reading_threads().map(self._read, index)

    def files(self, index: Sequence[int]) -> list[str]:
        """Their paths below the split's folder."""
        return [self._path(number) for number in index]

    def fingerprint(self) -> str:
        """Of the relative paths in their order and of the classes' names."""
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
            raise sources.BadRecordError(
                self.dataset, self.split, int(index), path, error.strerror or str(error)
            ) from error
        label = self._number[path.split("/", 1)[0]] if self._number else -1
        return sources.Record(content, label, path)


@functools.cache
def _reading_threads() -> pool.ThreadPool:
    """Threads of this process that read files; a program's end does not wait for them."""
    return pool.ThreadPool(_READ_THREADS)


def _root(data_dir: str) -> epath.Path:
    if not data_dir:
        raise ValueError("data.data_dir is empty: it is the folder that holds the images")
    root = epath.Path(data_dir).expanduser()
    if not root.exists():
        raise ValueError(f"data.data_dir='{data_dir}' does not exist")
    if not root.is_dir():
        raise ValueError(f"data.data_dir='{data_dir}' is a file, not a folder of images")
    return root


def _sub_folders(directory: epath.Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name[0] != "." and p.is_dir())


def _split_directory(root: epath.Path, base: str, split_key: str) -> epath.Path:
    if (root / base).is_dir():
        return root / base
    there = _sub_folders(root)
    splits = sorted(SPLIT_NAMES.intersection(there))
    if splits:
        raise ValueError(
            f"data.{split_key}: {root} has no folder '{base}'; its splits are {', '.join(splits)}"
        )
    if base != "train":
        raise ValueError(
            f"data.{split_key}: {root} has no folder '{base}', so that only 'train' exists, which "
            "is the whole folder; slice it: 'train[:95%]' to train and 'train[95%:]' to validate"
        )
    return root


def _walk(directory: epath.Path) -> Iterator[tuple[str, list[str]]]:
    """(sub-folder relative to `directory`, file names in it); hidden folders are left out."""

    def fail(error: OSError) -> NoReturn:
        raise ValueError(
            f"data.data_dir: the folder {error.filename or directory} cannot be listed: "
            f"{error.strerror or error}"
        ) from error

    top = os.fspath(directory)
    walk: Iterable[tuple[str, list[str], list[str]]]
    if "://" in top:
        found = directory.walk(on_error=fail)
        walk = ((os.fspath(where), folders, files) for where, folders, files in found)
    else:
        # Class folders are often links to where the images are.
        walk = os.walk(top, onerror=fail, followlinks=True)
    for where, folders, files in walk:
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(where, top)
        yield "" if relative == "." else relative, files


def _list_images(directory: epath.Path) -> tuple[list[str], Counter[str]]:
    """Paths of the images below a folder, and how many other files of which kind are there."""
    paths, skipped = [], Counter[str]()
    for where, files in _walk(directory):
        for name in files:
            extension = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                skipped["hidden"] += 1
            elif extension not in EXTENSIONS:
                skipped[extension or "no extension"] += 1
            else:
                paths.append(f"{where}/{name}" if where else name)
    return paths, skipped


def _count(skipped: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(5))
    return f"{skipped.total()} files ({kinds})" if skipped else "0 files"


def _classes(root: epath.Path, directory: epath.Path, paths: list[str]) -> tuple[str, ...]:
    own = {path.split("/", 1)[0] for path in paths if "/" in path}
    loose = next((path for path in paths if "/" not in path), None)
    if own and loose:
        raise ValueError(
            f"{directory} holds images both in class folders ({sources.as_names(own, 3)}) and "
            f"beside them ({loose}); move the loose ones into a folder or the folders elsewhere"
        )
    train = root / "train"
    if not own or directory == train or not train.is_dir():
        return tuple(sorted(own))
    classes = _sub_folders(train)
    unknown = own.difference(classes)
    if unknown:
        raise ValueError(
            f"{directory} has class folders that {train} lacks: {sources.as_names(unknown)}"
        )
    return tuple(classes)
