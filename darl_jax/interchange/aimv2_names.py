"""Names of AIMv2's arrays (arXiv 2411.14402), image encoder, in three projects.

ml-aim: github.com/apple/ml-aim, aim-v2, and the published files apple/aimv2-*. timm: its class of
plain ViTs. transformers: Aimv2VisionModel, and what an earlier conversion wrote. The file of the
'lit' model holds the image encoder among others.
"""

from darl_jax.interchange.aim_names import TRUNK
from darl_jax.interchange.name_schemes import CLIP, Scheme
from darl_jax.interchange.name_tables import Entry, joined_qkv, layers

KEYS = {
    "start_token": "none",
    "patch_norm": "rms",
    "norm": "rms",
    "norm_epsilon": 1e-5,
    "mlp": "swiglu",
    "attention_bias": False,
    "mlp_bias": False,
}


def _scheme(
    project: str,
    entries: tuple[Entry, ...],
    recognized: tuple[str, ...],
    lacking: tuple[str, ...] = (),
) -> Scheme:
    return Scheme(
        title=f"AIMv2 (names of {project})",
        entries=entries,
        recognized=recognized,
        lacking=lacking,
        keys=KEYS,
        optional={"positions": ("positions", "learnable", "sincos2d_native")},
        standardized=CLIP,
        notes=(
            "CLIP's, as Apple's preprocessor_config.json and timm have it, where ml-aim's own "
            "transform has ImageNet's; resized on the short side (bicubic) to what is read"
        ),
        head_dim=128,
        prefixes=("image_encoder.", "vision_model."),
        left_out=r"head\..*",  # attention pooling of the 'lit' model
        unpublished=((768, 12), "base"),
    )


_ML_AIM = TRUNK | {
    "blocks.{i}.mlp.gate": "trunk.blocks.{i}.mlp.fc1",
    "blocks.{i}.mlp.up": "trunk.blocks.{i}.mlp.fc3",
    "blocks.{i}.mlp.down": "trunk.blocks.{i}.mlp.fc2",
}
_TIMM = {
    "patch_embedding": "patch_embed.proj",
    "patch_norm": "patch_embed.norm",
    "final_norm": "norm",
    "blocks.{i}.norm_attention": "blocks.{i}.norm1",
    "blocks.{i}.attention.out": "blocks.{i}.attn.proj",
    "blocks.{i}.norm_mlp": "blocks.{i}.norm2",
    "blocks.{i}.mlp.gate": "blocks.{i}.mlp.fc1_g",
    "blocks.{i}.mlp.up": "blocks.{i}.mlp.fc1_x",
    "blocks.{i}.mlp.down": "blocks.{i}.mlp.fc2",
}


def _transformers(out: str, gate: str, up: str, down: str) -> tuple[Entry, ...]:
    layer = "encoder.layers.{i}"
    return (
        *layers(
            {
                "patch_embedding": "embeddings.patch_embed",
                "patch_norm": "embeddings.rms_norm",
                "final_norm": "rms_norm",
                "blocks.{i}.norm_attention": f"{layer}.rms_norm1",
                "blocks.{i}.attention.query": f"{layer}.attention.q_proj",
                "blocks.{i}.attention.key": f"{layer}.attention.k_proj",
                "blocks.{i}.attention.value": f"{layer}.attention.v_proj",
                "blocks.{i}.attention.out": f"{layer}.attention.{out}",
                "blocks.{i}.norm_mlp": f"{layer}.rms_norm2",
                "blocks.{i}.mlp.gate": f"{layer}.ffn.{gate}",
                "blocks.{i}.mlp.up": f"{layer}.ffn.{up}",
                "blocks.{i}.mlp.down": f"{layer}.ffn.{down}",
            }
        ),
        Entry(("positions",), ("embeddings.position_embedding.weight",)),
    )


_OLD_PROOF = "encoder.layers.0.ffn.fc1.weight"
ML_AIM = _scheme(
    "ml-aim",
    (
        *layers(_ML_AIM),
        *joined_qkv("trunk.blocks.{i}.attn.qkv"),
        Entry(("positions",), ("preprocessor.pos_embed",), leading=1),
    ),
    recognized=("preprocessor.patchifier.norm.weight",),
    lacking=("preprocessor.patchifier.norm.bias",),
)
TIMM = _scheme(
    "timm",
    (
        *layers(_TIMM),
        *joined_qkv("blocks.{i}.attn.qkv"),
        Entry(("positions",), ("pos_embed",), leading=1),
    ),
    recognized=("patch_embed.norm.weight", "blocks.0.mlp.fc1_g.weight"),
)
TRANSFORMERS = _scheme(
    "transformers",
    _transformers("out_proj", "gate_proj", "up_proj", "down_proj"),
    recognized=("embeddings.rms_norm.weight",),
    lacking=(_OLD_PROOF,),
)
OLD_TRANSFORMERS = _scheme(
    "an earlier transformers",
    _transformers("proj_out", "fc1", "fc3", "fc2"),
    recognized=("embeddings.rms_norm.weight", _OLD_PROOF),
)
