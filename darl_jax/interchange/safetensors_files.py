"""Reads and writes safetensors files, with errors that name the damage.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, the
header as JSON (type, shape and offsets of each array), and the arrays one after the other.
"""

import json
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from darl_jax.interchange.names import Tensors

_LONGEST_HEADER = 100_000_000  # bytes; safetensors itself reads no longer one
_FLOATS = ("F64", "F32", "F16", "BF16")


def write_safetensors(path: os.PathLike | str, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Writes contiguous arrays and text metadata, with the permissions of any new file."""
    pathlib.Path(path).touch()
    mode = os.stat(path).st_mode
    safetensors.numpy.save_file(tensors, os.fspath(path), metadata=metadata)
    os.chmod(path, mode)  # save_file leaves a file that only its owner can read


def read_safetensors(path: os.PathLike | str) -> Tensors:
    """All arrays of a file, as float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, it is truncated, or an array is not floating-point.
    """
    header = read_header(path)
    odd = [name for name, entry in header.items() if entry["dtype"] not in _FLOATS]
    if odd:
        raise ValueError(
            f"{path}: the array {odd[0]} has type {header[odd[0]]['dtype']}; parameters have one "
            f"of {', '.join(_FLOATS)}"
        )
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in header}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error


def read_header(path: os.PathLike | str) -> dict[str, Mapping[str, Any]]:
    """Type, shape and offsets of each array, checked against the file's length.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or it is truncated.
    """
    size = os.path.getsize(path)
    not_ours = f"{path} is no safetensors file: it does not begin with a header in JSON"
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _LONGEST_HEADER:
            raise ValueError(not_ours)
        if 8 + length > size:
            raise ValueError(
                f"{path} is truncated: its header has {length} bytes, and the file {size} in all; "
                "copy or export it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(not_ours) from error
    if size < end:
        raise ValueError(
            f"{path} is truncated: its header says {end} bytes, and the file has {size}; copy or "
            "export it again"
        )
    return header
