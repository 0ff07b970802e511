"""Names of NEPA's arrays (arXiv 2512.16922) in its own code (github.com/SihanXU/nepa)."""

from darl_jax.interchange.name_schemes import Scheme
from darl_jax.interchange.name_tables import Entry, layers

_LAYER = "encoder.layer.{i}"
_SELF = f"{_LAYER}.attention.attention"
_HALVES = ((0.5,) * 3, (0.5,) * 3)

NEPA = Scheme(
    title="NEPA",
    entries=(
        Entry(("sos",), ("embeddings.cls_token",), leading=2),
        *layers(
            {
                "patch_embedding": "embeddings.patch_embeddings.projection",
                "final_norm": "layernorm",
                "blocks.{i}.norm_attention": f"{_LAYER}.layernorm_before",
                "blocks.{i}.attention.query": f"{_SELF}.query",
                "blocks.{i}.attention.key": f"{_SELF}.key",
                "blocks.{i}.attention.value": f"{_SELF}.value",
                "blocks.{i}.attention.query_norm": f"{_SELF}.q_norm",
                "blocks.{i}.attention.key_norm": f"{_SELF}.k_norm",
                "blocks.{i}.attention.out": f"{_LAYER}.attention.output.dense",
                "blocks.{i}.norm_mlp": f"{_LAYER}.layernorm_after",
                "blocks.{i}.mlp.gate": f"{_LAYER}.intermediate.gate_proj",
                "blocks.{i}.mlp.up": f"{_LAYER}.intermediate.up_proj",
                "blocks.{i}.mlp.down": f"{_LAYER}.output.dense",
            }
        ),
        Entry(
            ("blocks.{i}.layer_scale",),
            (f"{_LAYER}.layer_scale.lambda1", f"{_LAYER}.output.layer_scale.lambda1"),
        ),
    ),
    recognized=(
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.intermediate.up_proj.weight",
    ),
    keys={"positions": "rope_dinov3", "rope_max_wavelength": 100.0, "norm_epsilon": 1e-12},
    optional={
        "mlp": ("blocks.0.mlp.gate.weight", "swiglu", "gelu"),
        "qk_norm": ("blocks.0.attention.query_norm.weight", "scale", "plain"),
        # Its script for fine-tuning can fold LayerScale into the projections.
        "layer_scale": ("blocks.0.layer_scale", 1e-5, 0.0),
    },
    standardized=_HALVES,
    notes="attention is causal in pre-training and full in fine-tuning",
    head_dim=64,
    prefixes=("vit_nepa.",),
    # The classifier norms the mean of normed tokens.
    left_out=r"(fc_norm|classifier)\..*|embeddings\.mask_token",
)
