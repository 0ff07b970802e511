"""Converts nested parameters to the flat names of `torch_module.py`, and back.

A path 'backbone/blocks/attention/query/kernel', whose array is stacked over the blocks, becomes
'blocks.0.attention.query.weight', 'blocks.1. ...': kernels (in, out) are transposed to PyTorch's
(out, in), and the patch embedding's, (row * column * channel, width), to a convolution's (width,
channel, row, column). The head is 'head.weight' and 'head.bias'. PRE_TRAINING's are left out.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Tensors = dict[str, np.ndarray]

_WEIGHT = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_NAMED = 5  # arrays that an error message names before it only counts
# Groups of parameters without use after pre-training.
PRE_TRAINING = ("patch_decoder", "query_stream")


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """Sizes that determine the arrays of a file and their shapes."""

    width: int
    depth: int
    mlp_dim: int
    patch_size: int
    channels: int = 3  # of an image
    grid: tuple[int, int] | None = None  # (rows, columns) of the learnable positions, if any
    num_classes: int | None = None  # of the head; None without one


def expected_shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's arrays by their flat names."""
    width, mlp_dim = shape.width, shape.mlp_dim
    # The shape of each layer's weight, whose first dimension is the bias's.
    weights: dict[str, tuple[int, ...]] = {
        "patch_embedding": (width, shape.channels, shape.patch_size, shape.patch_size)
    }
    for i in range(shape.depth):
        weights |= {f"blocks.{i}.{norm}": (width,) for norm in ("norm_attention", "norm_mlp")}
        for name in ("query", "key", "value", "out"):
            weights[f"blocks.{i}.attention.{name}"] = (width, width)
        weights[f"blocks.{i}.mlp.up"] = (mlp_dim, width)
        weights[f"blocks.{i}.mlp.down"] = (width, mlp_dim)
    weights["final_norm"] = (width,)
    if shape.num_classes is not None:
        weights["head"] = (shape.num_classes, width)
    arrays: dict[str, tuple[int, ...]] = {"sos": (width,)}
    if shape.grid is not None:
        arrays["positions"] = (math.prod(shape.grid), width)
    for name, weight in weights.items():
        arrays |= {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
    return arrays


def check_arrays(
    what: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError where an array is missing, unexpected or of another shape."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{what} has no array {listed(missing)}; a model of its config needs all of its "
            f"{len(expected)} arrays"
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
    kept = {**params["backbone"], **({"head": params["head"]} if "head" in params else {})}
    tensors: Tensors = {}
    for (*parents, last), array in flatten_dict(kept).items():
        name = _WEIGHT.get(last, last)
        if parents[:1] == ["blocks"]:
            for i, each in enumerate(array):
                tensors[".".join(["blocks", str(i), *parents[1:], name])] = _transposed(last, each)
        elif parents == ["patch_embedding"] and last == "kernel":
            pixels = np.asarray(array).reshape(patch_size, patch_size, -1, array.shape[-1])
            tensors["patch_embedding.weight"] = _float32(pixels.transpose(3, 2, 0, 1))
        else:
            tensors[".".join([*parents, name])] = _transposed(last, array)
    return tensors


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `to_torch`: nested parameters, the blocks stacked."""
    params: dict[tuple[str, ...], np.ndarray] = {}
    blocks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault(match[2], {})[int(match[1])] = tensor
        elif name == "patch_embedding.weight":
            kernel = tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
            params["backbone", "patch_embedding", "kernel"] = _float32(kernel)
        else:
            path = _path(name)
            top = () if path[0] == "head" else ("backbone",)
            params[*top, *path] = _transposed(path[-1], tensor)
    for name, each in blocks.items():
        path = _path(name)
        # Filled block by block, so that no more than two copies of a large model are in memory.
        first = _transposed(path[-1], each[0])
        stacked = np.empty((len(each), *first.shape), np.float32)
        for i in range(len(each)):
            stacked[i] = _transposed(path[-1], each[i])
        params["backbone", "blocks", *path] = stacked
    return unflatten_dict(params)


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
