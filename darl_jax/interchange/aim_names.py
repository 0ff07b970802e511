"""Names of AIM's arrays (arXiv 2401.08541) in Apple's two projects.

ml-aim: github.com/apple/ml-aim, aim-v1, and the published weights. ml-l3m: github.com/apple/ml-l3m,
the training code, which has query, key and value apart and keeps its fixed positions.
"""

from darl_jax.interchange.name_schemes import IMAGENET, Scheme
from darl_jax.interchange.name_tables import Entry, joined_qkv, layers

KEYS = {
    "positions": "sincos2d",
    "start_token": "none",
    "patch_norm": "layer",
    "attention_bias": False,
    "mlp_bias": False,
}
_NOTES = "ImageNet's; resized to 256 on the short side (bicubic), of which the center 224 is read"
TRUNK = {
    "patch_embedding": "preprocessor.patchifier.proj",
    "patch_norm": "preprocessor.patchifier.norm",
    "final_norm": "trunk.post_trunk_norm",
    "blocks.{i}.norm_attention": "trunk.blocks.{i}.norm_1",
    "blocks.{i}.attention.out": "trunk.blocks.{i}.attn.proj",
    "blocks.{i}.norm_mlp": "trunk.blocks.{i}.norm_2",
}
_MLP = {
    "blocks.{i}.mlp.up": "trunk.blocks.{i}.mlp.fc1",
    "blocks.{i}.mlp.down": "trunk.blocks.{i}.mlp.fc2",
}
_APART = {
    f"blocks.{{i}}.attention.{name}": f"trunk.blocks.{{i}}.attn.{theirs}_proj"
    for name, theirs in (("query", "q"), ("key", "k"), ("value", "v"))
}
_PATCH_NORM = ("preprocessor.patchifier.norm.weight", "preprocessor.patchifier.norm.bias")

ML_AIM = Scheme(
    title="AIM (names of ml-aim)",
    entries=(*layers({**TRUNK, **_MLP}), *joined_qkv("trunk.blocks.{i}.attn.qkv")),
    recognized=_PATCH_NORM,
    lacking=("trunk.blocks.0.attn.q_proj.weight",),
    keys=KEYS,
    standardized=IMAGENET,
    notes=_NOTES,
    head_dim=128,
    image_size=224,
    left_out=r"head\..*",  # the attentive probe
)
ML_L3M = Scheme(
    title="AIM (names of ml-l3m)",
    entries=(
        *layers({**TRUNK, **_APART, **_MLP}),
        Entry(("positions",), ("preprocessor.pos_embed",), leading=1),
    ),
    recognized=(*_PATCH_NORM, "trunk.blocks.0.attn.q_proj.weight"),
    keys=KEYS | {"norm_epsilon": 1e-5},
    standardized=IMAGENET,
    notes=_NOTES,
    head_dim=128,
    left_out=r"(head|postprocessor)\..*",  # the probe, or the head of pre-training
)
