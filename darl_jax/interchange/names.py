"""Converts nested parameters to the flat names of `torch_module.py`, and back.

A path 'backbone/blocks/attention/query/kernel', whose array is stacked over the blocks, becomes
'blocks.0.attention.query.weight', 'blocks.1. ...': kernels (in, out) are transposed to PyTorch's
(out, in), and the patch embedding's, (row * column * channel, width), to a convolution's (width,
channel, row, column). The head is 'head.weight' and 'head.bias'. The parts that only pre-training
has, a patch decoder and a query stream, are left out.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_NAMED = 5  # arrays that an error message names before it only counts
# Groups of parameters without use after pre-training.
PRE_TRAINING = ("patch_decoder", "query_stream")


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Sizes that determine the arrays of a file and their shapes.

    Attributes:
        width: channels of a token.
        depth: blocks.
        mlp_dim: channels inside an MLP.
        patch_size: rows and columns of a patch.
        channels: of an image.
        grid: (rows, columns) of the learnable positions; None for another encoding.
        num_classes: of the head; None without one.
    """

    width: int
    depth: int
    mlp_dim: int
    patch_size: int
    channels: int = 3
    grid: tuple[int, int] | None = None
    num_classes: int | None = None


def expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's arrays by their flat names."""
    width, mlp_dim = shape.width, shape.mlp_dim

    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    patch = (width, shape.channels, shape.patch_size, shape.patch_size)
    arrays: dict[str, tuple[int, ...]] = {
        "sos": (width,),
        "patch_embedding.weight": patch,
        "patch_embedding.bias": (width,),
    }
    if shape.grid is not None:
        arrays["positions"] = (math.prod(shape.grid), width)
    for i in range(shape.depth):
        block = f"blocks.{i}"
        arrays |= norm(f"{block}.norm_attention") | norm(f"{block}.norm_mlp")
        for name in ("query", "key", "value", "out"):
            arrays |= linear(f"{block}.attention.{name}", width, width)
        arrays |= linear(f"{block}.mlp.up", width, mlp_dim)
        arrays |= linear(f"{block}.mlp.down", mlp_dim, width)
    arrays |= norm("final_norm")
    if shape.num_classes is not None:
        arrays |= linear("head", width, shape.num_classes)
    return arrays


def check_arrays(
    what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks that a file has the expected arrays and no others.

    Raises:
        ValueError: an array is missing, unexpected or of another shape.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{what} has no array {listed(missing)}; a model of its config has {len(expected)} "
            "arrays, and all of them are needed"
        )
    extra = [name for name in found if name not in expected]
    if extra:
        raise ValueError(
            f"{what} has {listed(extra)}, which a model of its config does not have; it may be "
            "the file of another model"
        )
    wrong = [
        f"{name} of shape {tuple(found[name])} instead of {shape}"
        for name, shape in expected.items()
        if tuple(found[name]) != shape
    ]
    if wrong:
        raise ValueError(f"{what} does not fit its config: it has {listed(wrong)}")


def listed(names: Iterable[str]) -> str:
    """The first few of several names, and the number of the rest."""
    all_names = list(names)
    more = len(all_names) - _NAMED
    return ", ".join(all_names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def to_torch(params: Mapping[str, Any], patch_size: int) -> Tensors:
    """Backbone and head of nested parameters, float32, under flat names.

    Raises:
        ValueError: a group of parameters other than the backbone, the head and PRE_TRAINING's.
    """
    unknown = set(params) - {"backbone", "head", *PRE_TRAINING}
    if unknown:
        raise ValueError(
            f"parameters below {listed(sorted(unknown))!r} cannot be exported; those below "
            "'backbone' and 'head' can"
        )
    tensors: Tensors = {}
    for path, array in _leaves(params["backbone"]):
        *parents, last = path
        if parents[:1] == ["blocks"]:
            for i, each in enumerate(array):
                tensors[".".join(["blocks", str(i), *parents[1:], _WEIGHT[last]])] = _transposed(
                    last, each
                )
        elif parents == ["patch_embedding"] and last == "kernel":
            pixels = np.asarray(array).reshape(patch_size, patch_size, -1, array.shape[-1])
            tensors["patch_embedding.weight"] = _float32(pixels.transpose(3, 2, 0, 1))
        else:
            tensors[".".join([*parents, _WEIGHT.get(last, last)])] = _transposed(last, array)
    for path, array in _leaves(params.get("head", {})):
        tensors[f"head.{_WEIGHT[path[-1]]}"] = _transposed(path[-1], array)
    return tensors


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `to_torch`: nested parameters, the blocks stacked."""
    params: dict[str, Any] = {}
    blocks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(match[2], {})[int(match[1])] = tensor
        elif name == "patch_embedding.weight":
            kernel = tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
            _put(params, ("backbone", "patch_embedding", "kernel"), _float32(kernel))
        else:
            top = () if name.startswith("head.") else ("backbone",)
            path = _path(name)
            _put(params, (*top, *path), _transposed(path[-1], tensor))
    for name, each in blocks.items():
        path = _path(name)
        # Filled block by block, so that no more than two copies of a large model are in memory.
        first = _transposed(path[-1], each[0])
        stacked = np.empty((len(each), *first.shape), np.float32)
        for i in range(len(each)):
            stacked[i] = _transposed(path[-1], each[i])
        _put(params, ("backbone", "blocks", *path), stacked)
    return params


_WEIGHT = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _path(name: str) -> tuple[str, ...]:
    """Path of a flat name without its block."""
    *parents, last = name.split(".")
    if last == "weight":
        last = "scale" if "norm" in parents[-1] else "kernel"
    return (*parents, last)


def _transposed(last: str, array: Any) -> np.ndarray:
    """A kernel transposed (its own inverse); any other array unchanged."""
    return _float32(np.asarray(array).T if last == "kernel" else array)


def _float32(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)


def _leaves(
    tree: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterable[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _put(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
