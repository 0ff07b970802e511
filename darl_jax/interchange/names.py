"""Converts nested parameters to the flat names of `torch_module.py`, and back.

A path 'backbone/blocks/attention/query/kernel', whose array is stacked over the blocks, becomes
'blocks.0.attention.query.weight', 'blocks.1. ...': kernels (in, out) are transposed to PyTorch's
(out, in), and the patch embedding's, (row * column * channel, width), to a convolution's (width,
channel, row, column). The classifier's arrays are 'head.weight', 'head.bias' and, with a norm after
pooling, 'pooled_norm.*'. Groups that only pre-training or probes use are left out.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Tensors = dict[str, np.ndarray]
Shape = tuple[int, ...]

_WEIGHT = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_NAMED = 5  # arrays that an error message names before it only counts
_CLASSIFIER = ("head", "pooled_norm")
# Groups of parameters that belong to pre-training or to measuring alone, and to no later model.
_LEFT_OUT = ("patch_decoder", "query_stream", "mae_decoder", "probes")


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
    norm: str = "layer"
    mlp: str = "gelu"
    mlp_bias: bool = True
    attention_bias: bool = True
    qk_channels: int | None = None  # of a head, where the norms of queries and keys have a scale
    layer_scale: bool = False
    patch_norm: str = "none"
    start_token: bool = True
    pooled_norm: bool = False  # between pooling and head


def expected_shapes(shape: ModelShape) -> dict[str, Shape]:
    """Shapes of a model's arrays by their flat names."""
    width = shape.width
    arrays: dict[str, Shape] = {"sos": (width,)} if shape.start_token else {}
    if shape.grid is not None:
        arrays["positions"] = (math.prod(shape.grid), width)
    patch = (width, shape.channels, shape.patch_size, shape.patch_size)
    arrays |= _layer("patch_embedding", patch)
    if shape.patch_norm != "none":
        arrays |= _layer("patch_norm", (width,), shape.patch_norm == "layer")
    arrays |= block_shapes(shape)
    arrays |= _layer("final_norm", (width,), shape.norm == "layer")
    if shape.pooled_norm:
        arrays |= _layer("pooled_norm", (width,))
    if shape.num_classes is not None:
        arrays |= _layer("head", (shape.num_classes, width))
    return arrays


def block_shapes(shape: ModelShape) -> dict[str, Shape]:
    """Shapes of the blocks' arrays by their flat names."""
    width, mlp_dim = shape.width, shape.mlp_dim
    arrays: dict[str, Shape] = {}
    for block in (f"blocks.{i}" for i in range(shape.depth)):
        for norm in ("norm_attention", "norm_mlp"):
            arrays |= _layer(f"{block}.{norm}", (width,), shape.norm == "layer")
        for name in ("query", "key", "value", "out"):
            arrays |= _layer(f"{block}.attention.{name}", (width, width), shape.attention_bias)
        if shape.qk_channels is not None:
            for norm in ("query_norm", "key_norm"):
                arrays |= _layer(f"{block}.attention.{norm}", (shape.qk_channels,), bias=False)
        for name in ("gate", "up") if shape.mlp == "swiglu" else ("up",):
            arrays |= _layer(f"{block}.mlp.{name}", (mlp_dim, width), shape.mlp_bias)
        arrays |= _layer(f"{block}.mlp.down", (width, mlp_dim), shape.mlp_bias)
        if shape.layer_scale:
            arrays[f"{block}.layer_scale"] = (2, width)
    return arrays


def _layer(name: str, weight: Shape, bias: bool = True) -> dict[str, Shape]:
    return {f"{name}.weight": weight} | ({f"{name}.bias": weight[:1]} if bias else {})


def check_arrays(
    what: str,
    found: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    model: str = "its config",
) -> None:
    """Raises ValueError where an array is missing, unexpected or of another shape.

    Args:
        what: the file.
        found: its shapes by name.
        expected: those of the model.
        model: what the expected ones belong to, in words.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{what} has no array {listed(missing)}; a model of {model} needs all of its "
            f"{len(expected)} arrays"
        )
    extra = [name for name in found if name not in expected]
    if extra:
        raise ValueError(
            f"{what} has {listed(extra)}, which a model of {model} does not have; it may be "
            "the file of another model"
        )
    wrong = [
        f"{name} of shape {tuple(found[name])} instead of {shape}"
        for name, shape in expected.items()
        if tuple(found[name]) != shape
    ]
    if wrong:
        raise ValueError(f"{what} does not fit {model}: it has {listed(wrong)}")


def listed(names: Iterable[str]) -> str:
    """The first few of several names, and the number of the rest."""
    all_names = list(names)
    more = len(all_names) - _NAMED
    return ", ".join(all_names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def has_classifier(params: Mapping[str, Any]) -> bool:
    """True where 'head' is a classifier's single linear layer, not a head of pre-training."""
    return "kernel" in params.get("head", {})


def left_out(params: Mapping[str, Any]) -> list[str]:
    """Groups of nested parameters that only pre-training and probes use."""
    return [
        name
        for name in params
        if name in _LEFT_OUT or (name == "head" and not has_classifier(params))
    ]


def to_torch(params: Mapping[str, Any], patch_size: int) -> Tensors:
    """Backbone and classifier of nested parameters, float32, under flat names.

    Raises:
        ValueError: a group of parameters other than these and those of `left_out`.
    """
    classifier = [name for name in _CLASSIFIER if name in params and has_classifier(params)]
    unknown = set(params) - {"backbone", *classifier, *left_out(params)}
    if unknown:
        raise ValueError(
            f"parameters below {listed(sorted(unknown))!r} cannot be exported; those below "
            "'backbone' and 'head' can"
        )
    kept = {**params["backbone"], **{name: params[name] for name in classifier}}
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
            top = () if path[0] in _CLASSIFIER else ("backbone",)
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
