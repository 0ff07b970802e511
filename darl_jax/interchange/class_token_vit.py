"""Imports ViT checkpoints of MAE's torch code and of timm.

Both have a class token, one matrix for query, key and value, and a position for each token. Their
class token with its position becomes the start of the sequence; their positions become 'sincos2d'
where they are MAE's fixed ones, otherwise 'learnable'. LayerScale is folded into the projection
that it follows. Heads are left out where they read the class token; those of MAE's fine-tuning read
the mean over the patches, which a norm follows that takes the place of the last one.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from darl_jax.interchange import mae_names
from darl_jax.interchange.described import PLAIN_VIT
from darl_jax.interchange.name_schemes import IMAGENET, ForeignModel, is_fixed, model_sizes
from darl_jax.interchange.names import (
    ModelShape,
    Tensors,
    check_arrays,
    expected_shapes,
    from_torch,
    listed,
)
from darl_jax.interchange.timm_names import QKV, renamed, split_qkv

# Parts that ViT lacks: a pattern of array names, and its meaning.
_REFUSED = (
    (r".*\.(q_norm|k_norm)\..*", "its queries and keys are normed (qk_norm)"),
    (r"(reg_token|register_tokens|storage_tokens)", "it has register tokens"),
    (r"dist_token", "it has a distillation token"),
    (r"norm_pre\..*", "it has a norm before the first block (pre_norm)"),
    (r".*(rope|rel_pos|relative_position).*", "its positions are relative or rotary"),
    (r".*\.(q_proj|k_proj|v_proj|q_bias|v_bias)(\..*)?", "its attention is EVA's or BEiT's"),
    (r"attn_pool\..*", "it pools by attention"),
    (r"blocks\.\d+\.attn\.norm\..*", "it has a norm inside its attention"),
    (r"blocks\.\d+\.mlp\.(norm|fc1_g|fc1_x|w12|w3)\..*", "its MLP is gated or normed"),
)
_LEFT_OUT = r"decoder_.*|mask_token|head\..*|head_dist\..*"
_CLASSIFIER = {"fc_norm": "pooled_norm", "head": "head"}  # of MAE's fine-tuning
_KINDS = ("weight", "bias")
_FINE_TUNED = (
    "its classifier needs config.objective.norm_after_pooling=True, pooling='mean' and mask='full'"
)
# Both of LayerScale's names, and the projections that they follow.
_LAYER_SCALE = {
    "ls1.gamma": "attn.proj",
    "ls2.gamma": "mlp.fc2",
    "gamma_1": "attn.proj",
    "gamma_2": "mlp.fc2",
}


def looks_like(names: Mapping[str, object]) -> bool:
    """True where a file's arrays have the names of timm's ViT."""
    return any(name.endswith("blocks.0.attn.qkv.weight") for name in names) or (
        "patch_embed.proj.weight" in names
    )


def read(what: str, tensors: Mapping[str, np.ndarray]) -> ForeignModel:
    """Converts the arrays of the file `what`, under timm's names, to a model.

    Raises:
        ValueError: ViT cannot represent this model, or an array is missing.
    """
    left_out = {name for name in tensors if re.fullmatch(_LEFT_OUT, name)}
    kept = {name: value for name, value in tensors.items() if name not in left_out}
    _refuse(what, kept)
    depth = 1 + max(int(match[1]) for name in kept if (match := re.match(r"blocks\.(\d+)\.", name)))
    shape, image_size = _shape(what, kept, depth)
    _fold_layer_scale(kept, depth)
    flat = {ours: kept.pop(timm) for ours, timm in renamed(depth).items() if timm in kept}
    for i in range(depth):
        weight, bias = (kept.pop(f"blocks.{i}.attn.qkv.{kind}", None) for kind in _KINDS)
        if weight is None:
            continue  # reported below
        bias = np.zeros(len(weight), np.float32) if bias is None else bias
        for kind, joined in zip(_KINDS, (weight, bias), strict=True):
            flat |= split_qkv(joined, f"blocks.{i}.attention", kind)
    positions, table = _tokens(kept, flat, shape)
    side = image_size // shape.patch_size
    grid = (side, side)
    if table is not None:
        flat["positions"] = table
        shape = dataclasses.replace(shape, grid=grid)
    fine_tuned = "fc_norm.weight" in kept
    if fine_tuned:
        head = {name: tensors[name] for name in tensors if re.fullmatch(r"head\.\w+", name)}
        left_out -= head.keys()
        shape = _add_classifier(what, kept | head, flat, shape)
        kept = {name: value for name, value in kept.items() if not name.startswith("fc_norm.")}
    _check(what, flat, kept, shape)
    params = from_torch(flat)
    is_mae = positions == "sincos2d" or any(name.startswith("decoder_") for name in left_out)
    decoder = mae_names.decoder_arrays(tensors)
    if decoder:
        params["mae_decoder"] = mae_names.read_decoder(what, decoder, shape, grid)
        left_out -= decoder.keys()
    return ForeignModel(
        params=params,
        model={**PLAIN_VIT, **model_sizes(dataclasses.asdict(shape)), "positions": positions},
        image_size=image_size,
        title="MAE" if is_mae else "fine-tuned MAE" if fine_tuned else "timm ViT",
        left_out=sorted(left_out),
        standardized=IMAGENET if is_mae or fine_tuned else None,
        notes=_FINE_TUNED if fine_tuned else "",
    )


def _add_classifier(
    what: str, tensors: Mapping[str, np.ndarray], flat: Tensors, shape: ModelShape
) -> ModelShape:
    """Adds the classifier of MAE's fine-tuning, and a last norm that nothing reads, to `flat`."""
    if "final_norm.weight" in flat:
        raise ValueError(
            f"{what} has norm.weight and fc_norm.weight, norms before and after pooling, of "
            "which darl_jax's classifier has one"
        )
    for theirs, ours in _CLASSIFIER.items():
        for kind in _KINDS:
            if f"{theirs}.{kind}" in tensors:
                flat[f"{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    flat["final_norm.weight"] = np.ones(shape.width, np.float32)
    flat["final_norm.bias"] = np.zeros(shape.width, np.float32)
    classes = len(flat["head.weight"]) if "head.weight" in flat else None
    return dataclasses.replace(shape, pooled_norm=True, num_classes=classes)


def _refuse(what: str, names: Mapping[str, object]) -> None:
    for pattern, reason in _REFUSED:
        for name in names:
            if re.fullmatch(pattern, name):
                raise ValueError(
                    f"{what} has {name}: {reason}, which darl_jax's ViT lacks; a plain ViT with a "
                    "class token can be imported, such as MAE's or timm's vit_base_patch16_224"
                )
    for name, reason in (
        ("cls_token", "it has no class token to become the start token"),
        ("pos_embed", "it has no positions"),
        ("patch_embed.proj.weight", "it has no patch embedding"),
        ("blocks.0.attn.qkv.weight", "it has no first block"),
        ("blocks.0.mlp.fc1.weight", "it has no first MLP"),
    ):
        if name not in names:
            raise ValueError(f"{what} has no array {name}: {reason}")


def _shape(what: str, tensors: Mapping[str, np.ndarray], depth: int) -> tuple[ModelShape, int]:
    """The model's shape without its positions, and the size of its images."""
    width, channels, rows, columns = tensors["patch_embed.proj.weight"].shape
    if rows != columns:
        raise ValueError(f"{what} has patches of {rows} x {columns} pixels; they must be square")
    tokens = tensors["pos_embed"].shape[-2]
    for patches in (tokens - 1, tokens):  # with the class token's, or without
        side = math.isqrt(patches)
        if side and side**2 == patches:
            mlp_dim = tensors["blocks.0.mlp.fc1.weight"].shape[0]
            return ModelShape(width, depth, mlp_dim, rows, channels), side * rows
    raise ValueError(
        f"{what} has {tokens} positions, which fit no square grid, with or without a class token"
    )


def _fold_layer_scale(tensors: Tensors, depth: int) -> None:
    """gamma * (W x + b) = (gamma W) x + gamma b."""
    for i in range(depth):
        for gamma, projection in _LAYER_SCALE.items():
            scale = tensors.pop(f"blocks.{i}.{gamma}", None)
            names = [f"blocks.{i}.{projection}.{kind}" for kind in _KINDS]
            if scale is None or not all(name in tensors for name in names):
                continue
            tensors[names[0]] = tensors[names[0]] * scale[:, None]
            tensors[names[1]] = tensors[names[1]] * scale


def _tokens(kept: Tensors, flat: Tensors, shape: ModelShape) -> tuple[str, np.ndarray | None]:
    """Adds the start token to `flat`; returns the encoding and its table, if it has one."""
    sos = kept.pop("cls_token").reshape(-1)
    table = kept.pop("pos_embed").reshape(-1, shape.width)
    side = math.isqrt(len(table))
    if side**2 != len(table):
        sos, table = sos + table[0], table[1:]
        side = math.isqrt(len(table))
    flat["sos"] = sos
    return ("sincos2d", None) if is_fixed(table, (side, side)) else ("learnable", table)


def _check(what: str, flat: Tensors, rest: Tensors, shape: ModelShape) -> None:
    """Checks that all arrays are there, with the file's own names in errors."""
    if rest:
        raise ValueError(
            f"{what} has {listed(sorted(rest))}, which a plain ViT with a class token lacks"
        )
    timm = renamed(shape.depth)
    for i in range(shape.depth):
        for name in QKV:
            for kind in _KINDS:
                timm[f"blocks.{i}.attention.{name}.{kind}"] = f"blocks.{i}.attn.qkv.{kind}"
    for theirs, ours in _CLASSIFIER.items():
        timm |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in _KINDS}
    expected = expected_shapes(shape)
    found = {timm.get(name, name): value.shape for name, value in flat.items() if name in expected}
    check_arrays(what, found, {timm.get(name, name): each for name, each in expected.items()})
