"""Reads and writes safetensors files (https://huggingface.co/docs/safetensors)."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from darl_jax.interchange.names import Tensors

_FLOATS = ("F64", "F32", "F16", "BF16")


def write_safetensors(path: os.PathLike | str, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Writes contiguous arrays and text metadata, with the permissions of any new file."""
    # Not save_file, which leaves a file that only its owner can read.
    pathlib.Path(path).write_bytes(safetensors.numpy.save(tensors, metadata))


def read_safetensors(path: os.PathLike | str) -> Tensors:
    """All arrays of a file, as float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, it is truncated, or an array is not floating-point.
    """
    tensors = {}
    with _opened(path) as (file, names):
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _FLOATS:
                raise ValueError(
                    f"{path}: the array {name} has type {dtype}; parameters have one of "
                    f"{', '.join(_FLOATS)}"
                )
            tensors[name] = np.asarray(file.get_tensor(name), np.float32)
    return tensors


def read_shapes(path: os.PathLike | str) -> dict[str, tuple[int, ...]]:
    """Shape of each array. Raises as `read_safetensors`, whatever the types of the arrays."""
    with _opened(path) as (file, names):
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


@contextlib.contextmanager
def _opened(path: os.PathLike | str) -> Iterator[tuple[Any, list[str]]]:
    try:
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            yield file, list(file.keys())
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file, or is truncated to {os.path.getsize(path)} bytes "
            f"({error}); copy or export it again"
        ) from error
