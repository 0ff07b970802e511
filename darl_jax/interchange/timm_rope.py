"""Export to timm's stock ViT with RoPE (`timm.models.eva.Eva`).

timm (1.0.31 read) rotates adjacent channel pairs of a head, all pairs of one axis before those of
the other, by coordinate * temperature^(-2i/d), with integer coordinates that `ref_feat_shape`
scales from another grid: the angles of nn/positions.py. There the pairs are the halves of a head,
so each head's queries and keys are permuted here; timm's `vit_*_rope_*` put x first ('xy'), so a
model with y first has the axes' pairs exchanged too. LayerScale, which these models have, is 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from darl_jax.interchange.described import PLAIN_VIT
from darl_jax.interchange.names import Tensors
from darl_jax.interchange.timm_names import QKV, renamed
from darl_jax.nn.positions import halves_from_pairs, sincos_2d

# (width, depth, heads) of timm's own models with patches of 16.
_ARCHITECTURES = {
    (384, 12, 6): "vit_small_patch16_rope_224",
    (768, 12, 12): "vit_base_patch16_rope_224",
    (1024, 24, 16): "vit_large_patch16_rope_224",
}
_LACKING = ("rope1d", "rope_dinov3", "sincos2d_native")
_OTHER_SIZES = "vit_base_patch16_rope_224"  # every argument of its class can be given


def check_representable(model: Mapping[str, Any]) -> None:
    """Checks that timm's class computes the same function. Raises ValueError."""
    if model["sequence"] is not None:
        raise ValueError(
            "--format=timm: timm's ViT reads patches in raster order, and config.model.order.name "
            "is another one; --format=safetensors keeps it"
        )
    lacking = [
        f"{key}={model[key]!r}"
        for key, plain in PLAIN_VIT.items()
        if model[key] != plain and key != "layer_scale"
    ]
    if model["positions"] in _LACKING:
        lacking.insert(0, f"positions={model['positions']!r}")
    if lacking:
        raise ValueError(
            f"--format=timm: timm's ViT with RoPE has no config.model.{lacking[0]}; "
            "--format=safetensors keeps it"
        )


def architecture(model: Mapping[str, Any]) -> str:
    """The name in timm's registry."""
    size = (model["width"], model["depth"], model["num_heads"])
    return _ARCHITECTURES.get(size, _OTHER_SIZES)


def model_args(model: Mapping[str, Any], head_classes: int) -> dict[str, Any]:
    """Arguments of `timm.create_model` beside the name and the checkpoint.

    `model` is the group 'model' of an export's config (described.py); `head_classes` is 0 without
    a head.
    """
    rows, columns = model["grid"]
    patch_size, width, mlp_dim = model["patch_size"], model["width"], model["mlp_dim"]
    ratio = mlp_dim / width
    if int(width * ratio) != mlp_dim:  # timm rounds it down
        ratio = float(np.nextafter(ratio, np.inf))
    arguments = {
        "img_size": [rows * patch_size, columns * patch_size],
        "patch_size": patch_size,
        "in_chans": model["channels"],
        "embed_dim": width,
        "depth": model["depth"],
        "num_heads": model["num_heads"],
        "mlp_ratio": ratio,
        "num_classes": head_classes,
        # Tokens are normalized, then averaged without the start token.
        "global_pool": "avg",
        "use_fc_norm": False,
    }
    if model["positions"] == "rope2d":
        return arguments | {
            "rope_temperature": model["rope_max_wavelength"],
            "ref_feat_shape": [rows, columns],
        }
    return arguments | {
        "use_rot_pos_emb": False,
        "use_abs_pos_emb": model["positions"] != "none",
        "no_embed_class": True,  # the start token has no position
    }


def to_timm(tensors: Mapping[str, np.ndarray], model: Mapping[str, Any], *, head: bool) -> Tensors:
    """Renames the arrays of names.py for a model of the group 'model' of an export's config."""
    depth, width = model["depth"], model["width"]
    order = np.arange(width)
    if model["positions"] == "rope2d":
        order = channel_order(width, model["num_heads"], y_first=model["rope_y_first"])
    out = {timm: tensors[ours] for ours, timm in renamed(depth).items()}
    for block in (f"blocks.{i}" for i in range(depth)):
        for kind in ("weight", "bias"):
            parts = {name: tensors[f"{block}.attention.{name}.{kind}"] for name in QKV}
            parts |= {name: parts[name][order] for name in ("query", "key")}
            out[f"{block}.attn.qkv.{kind}"] = np.concatenate(list(parts.values()))
        scales = tensors.get(f"{block}.layer_scale", np.ones((2, width), np.float32))
        out |= {f"{block}.gamma_{i}": scale for i, scale in enumerate(scales, start=1)}
    out["cls_token"] = tensors["sos"][None, None]
    if model["positions"] == "learnable":
        out["pos_embed"] = tensors["positions"][None]
    elif model["positions"] == "sincos2d":
        grid = (int(model["grid"][0]), int(model["grid"][1]))
        out["pos_embed"] = sincos_2d(grid, grid, width)[None]
    if head:
        out |= {name: tensors[name] for name in ("head.weight", "head.bias")}
    return out


def channel_order(width: int, num_heads: int, *, y_first: bool) -> np.ndarray:
    """Output channel of our query or key projection at each of timm's channels, (width,)."""
    head_dim = width // num_heads
    pairs = np.argsort(halves_from_pairs(head_dim)).reshape(-1, 2)
    if y_first:
        pairs = np.roll(pairs, len(pairs) // 2, axis=0)
    return (np.arange(num_heads)[:, None] * head_dim + pairs.ravel()).ravel()
