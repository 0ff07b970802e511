"""Names of MAE's arrays in its torch code (github.com/facebookresearch/mae), which are timm's."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from darl_jax.interchange.name_schemes import check_keys, fixed_positions, is_fixed
from darl_jax.interchange.name_tables import Entry, joined_qkv, layers, of_model
from darl_jax.interchange.names import (
    ModelShape,
    Shape,
    Tensors,
    block_shapes,
    check_arrays,
    from_torch,
    to_torch,
)
from darl_jax.interchange.timm_names import IN_BLOCK, renamed
from darl_jax.nn.positions import sincos_2d

# Names of ours below 'mae_decoder'.
_DECODER = (
    *layers(
        {"embed": "decoder_embed", "norm": "decoder_norm", "to_pixels": "decoder_pred"}
        | {
            f"blocks.{{i}}.{ours}": f"decoder_blocks.{{i}}.{each}"
            for ours, each in IN_BLOCK.items()
        }
    ),
    *joined_qkv("decoder_blocks.{i}.attn.qkv"),
    Entry(("mask_token",), ("mask_token",), leading=2),
)
_POSITIONS = "decoder_pos_embed"
_FIRST_BLOCK = "decoder_blocks.0.attn.qkv.weight"


def decoder_arrays(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Arrays of the decoder; none where a file has but remains of one."""
    if _FIRST_BLOCK not in tensors:
        return {}
    return {name: x for name, x in tensors.items() if re.fullmatch("decoder_.*|mask_token", name)}


def read_decoder(
    what: str, tensors: Tensors, encoder: ModelShape, grid: tuple[int, int]
) -> dict[str, Any]:
    """Converts the decoder of the file `what` to nested parameters.

    Raises:
        ValueError: arrays are missing, too many or of wrong shapes, or positions are not MAE's.
    """
    width = tensors[_FIRST_BLOCK].shape[-1]
    depth = len({name.split(".")[1] for name in tensors if name.startswith("decoder_blocks.")})
    hidden = len(tensors.get("decoder_blocks.0.mlp.fc1.weight", ()))
    pixels = encoder.patch_size**2 * encoder.channels
    expected = block_shapes(ModelShape(width, depth, hidden, encoder.patch_size))
    expected |= {"embed.weight": (width, encoder.width), "embed.bias": (width,)}
    expected |= {"mask_token": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    expected |= {"to_pixels.weight": (pixels, width), "to_pixels.bias": (pixels,)}
    entries = of_model(_DECODER, expected, depth)
    needed = {name: entry.shape(expected) for entry in entries for name in entry.theirs}
    needed[_POSITIONS] = (1, 1 + math.prod(grid), width)
    found: dict[str, Shape] = {name: x.shape for name, x in tensors.items()}
    check_arrays(what, found, needed, "MAE's decoder")
    start, table = np.split(tensors[_POSITIONS][0], [1])
    if np.any(start) or not is_fixed(table, grid):
        raise ValueError(
            f"{what} has a {_POSITIONS} that is not the sine-cosine one, which MAE never trains"
        )
    flat: Tensors = {}
    for entry in entries:
        flat |= entry.to_ours(tensors)
    return from_torch(flat)["backbone"]


def write(params: Mapping[str, Any], model: Mapping[str, Any]) -> Tensors:
    """Converts an encoder, and a decoder or a classifier with a norm after pooling.

    Args:
        params: nested, of a run.
        model: the group 'model' of an export's config (described.py).

    Raises:
        ValueError: MAE has no such backbone; the message begins with the key.
    """
    check_keys(model, {"positions": ("sincos2d", "learnable")})
    flat = to_torch(
        {name: x for name, x in params.items() if name != "mae_decoder"}, model["patch_size"]
    )
    depth, width = model["depth"], model["width"]
    if model["positions"] == "sincos2d":
        flat["positions"] = fixed_positions(model)
    of_start = np.zeros((1, width), np.float32)
    tensors = {
        "cls_token": flat["sos"][None, None],
        "pos_embed": np.concatenate([of_start, flat["positions"]])[None],
        **{theirs: flat[ours] for ours, theirs in renamed(depth).items()},
    }
    for entry in of_model(joined_qkv("blocks.{i}.attn.qkv"), flat, depth):
        tensors |= entry.to_theirs(flat)
    if model["pooled_norm"]:
        for kind in ("weight", "bias"):
            del tensors[f"norm.{kind}"]  # which nothing reads
            tensors[f"fc_norm.{kind}"] = flat[f"pooled_norm.{kind}"]
            tensors[f"head.{kind}"] = flat[f"head.{kind}"]
    if "mae_decoder" in params:
        tensors |= _write_decoder(params["mae_decoder"], model)
    return tensors


def _write_decoder(params: Mapping[str, Any], model: Mapping[str, Any]) -> Tensors:
    decoder = to_torch({"backbone": params}, model["patch_size"])
    width = len(decoder["mask_token"])
    depth = len(params["blocks"]["norm_mlp"]["scale"])
    grid = (int(model["grid"][0]), int(model["grid"][1]))
    table = np.concatenate([np.zeros((1, width), np.float32), sincos_2d(grid, grid, width)])
    tensors = {_POSITIONS: table[None]}
    for entry in of_model(_DECODER, decoder, depth):
        tensors |= entry.to_theirs(decoder)
    return tensors
