"""timm's names of a ViT's arrays (MAE's torch code has them too) beside those of names.py."""

import numpy as np

from darl_jax.interchange.names import Tensors

QKV = ("query", "key", "value")  # the order in timm's one matrix of them
_OUTSIDE = {"patch_embedding": "patch_embed.proj", "final_norm": "norm"}
IN_BLOCK = {
    "norm_attention": "norm1",
    "attention.out": "attn.proj",
    "norm_mlp": "norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def renamed(depth: int) -> dict[str, str]:
    """timm's name of each array that is only renamed: all but tokens, positions and qkv."""
    names = dict(_OUTSIDE)
    for i in range(depth):
        names |= {f"blocks.{i}.{ours}": f"blocks.{i}.{timm}" for ours, timm in IN_BLOCK.items()}
    return {
        f"{ours}.{kind}": f"{timm}.{kind}"
        for ours, timm in names.items()
        for kind in ("weight", "bias")
    }


def split_qkv(joined: np.ndarray, prefix: str, kind: str) -> Tensors:
    """Splits timm's one matrix (or bias) of query, key and value."""
    parts = np.split(joined, len(QKV))
    return {f"{prefix}.{name}.{kind}": part for name, part in zip(QKV, parts, strict=True)}
