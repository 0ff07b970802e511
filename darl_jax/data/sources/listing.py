"""Lists the images of a folder, each file once."""

import os
from collections import Counter, deque
from collections.abc import Iterator

from absl import logging
from etils import epath
from PIL import features

EXTENSIONS = frozenset(
    ".bmp .gif .jfif .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
    # Some builds of Pillow lack these.
    + ([".avif"] if features.check("avif") else [])
    + ([".jp2"] if features.check("jpg_2000") else [])
)
# Other formats of images, and packages that read and convert them.
_CONVERTERS = {
    ".avif": "a newer Pillow",
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
    ".jp2": "a newer Pillow",
    ".psd": "psd-tools",
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), "rawpy"),
}
_MANY = 0.1  # A larger share of files left out is worth a warning.
_TWICE = "reached a second time by links"


def list_images(directory: epath.Path, *, log: bool) -> list[str]:
    """Relative paths of the images below a folder, in alphabetical order; may log the others.

    Raises:
      ValueError: there are none, or a folder cannot be listed.
    """
    paths, skipped = [], Counter[str]()
    for path in files_below(directory, skipped):
        name = path.rpartition("/")[2]
        extension = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            skipped["hidden"] += 1
        elif extension not in EXTENSIONS:
            skipped[extension or "without extension"] += 1
        else:
            paths.append(path)
    if not paths:
        raise ValueError(
            f"{directory} holds no images (left out: {_count(skipped)}); images end in "
            f"{' '.join(sorted(EXTENSIONS))}"
        )
    if skipped and log:
        others = skipped.total() - skipped["hidden"]
        many = others > _MANY * (others + len(paths)) or not _CONVERTERS.keys().isdisjoint(skipped)
        level = logging.WARNING if many else logging.INFO
        message = "%s: %d images; files left out: %s"
        logging.log(level, message, directory, len(paths), _count(skipped))
    return sorted(paths)


def holds_images(directory: epath.Path) -> bool:
    """True where there is an image below a folder; stops at the first."""
    return any(
        os.path.splitext(path)[1].lower() in EXTENSIONS and path.rpartition("/")[2][0] != "."
        for path in files_below(directory, Counter())
    )


def _count(skipped: Counter[str]) -> str:
    kinds = []
    for kind, count in sorted(skipped.items(), key=lambda each: (-each[1], each[0]))[:8]:
        reader = _CONVERTERS.get(kind)
        kinds.append(f"{count} {kind}{f' ({reader} converts them to PNG)' if reader else ''}")
    return ", ".join(kinds) or "none"


def files_below(directory: epath.Path, skipped: Counter[str]) -> Iterator[str]:
    """Relative paths of files below a folder; hidden folders are left out."""
    try:
        if "://" not in os.fspath(directory):
            yield from _local_files(os.fspath(directory), skipped)
            return
        for where, folders, files in directory.walk(on_error=_fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            relative = os.path.relpath(os.fspath(where), os.fspath(directory))
            yield from (name if relative == "." else f"{relative}/{name}" for name in files)
    except OSError as error:
        raise ValueError(
            f"data.data_dir: the folder {error.filename or directory} cannot be listed: "
            f"{error.strerror or error}"
        ) from error


def _fail(error: OSError) -> None:
    raise error


def _local_files(top: str, skipped: Counter[str]) -> Iterator[str]:
    """Files of a local folder, each once: links are followed after everything else.

    Class folders are often links to folders elsewhere; links may also lead back into the folder.
    """
    first: dict[tuple[int, int], str] = {}  # Path by device and inode.

    def is_new(key: tuple[int, int], path: str) -> bool:
        # Some file systems give inodes that are not unique, so equal ones are looked at.
        earlier = first.setdefault(key, path)
        if earlier == path or not os.path.samefile(f"{top}/{earlier}", f"{top}/{path}"):
            return True
        skipped[_TWICE] += 1
        return False

    folders, links = deque([""]), deque[str]()
    while folders or links:
        path = (folders or links).popleft()
        try:
            status = os.stat(f"{top}/{path}")
        except FileNotFoundError:  # A link to nothing is a record that cannot be read.
            yield path
            continue
        if not is_new((status.st_dev, status.st_ino), path):
            continue
        if not os.path.isdir(f"{top}/{path}"):
            yield path
            continue
        with os.scandir(f"{top}/{path}" if path else top) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                inner = f"{path}/{entry.name}" if path else entry.name
                hidden = entry.name.startswith(".")
                if entry.is_symlink():
                    links.extend([] if hidden else [inner])
                elif entry.is_dir():
                    folders.extend([] if hidden else [inner])
                elif is_new((status.st_dev, entry.inode()), inner):
                    yield inner
