"""Our parameters in timm's stock ViT with RoPE: stored numbers, and timm itself where it is."""

import json

import numpy as np
import pytest

from darl_jax.interchange.exporting import export
from darl_jax.interchange.loading import LoadedModel, build_backbone
from darl_jax.interchange.names import from_torch
from darl_jax.interchange.timm_rope import architecture, channel_order, model_args, to_timm
from tests.interchange.small_run import (
    GOLDEN_MODEL,
    TOLERANCE,
    as_loaded,
    block_features,
    golden,
    golden_weights,
    make_config,
    make_source,
)

PARTS = {
    "norm1": "norm_attention",
    "attn.proj": "attention.out",
    "norm2": "norm_mlp",
    "mlp.fc1": "mlp.up",
    "mlp.fc2": "mlp.down",
}


# timm's adjacent channel pairs as the halves of a head: the golden models' 2 heads of 8 channels.
HALVES = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


def golden_as_ours(*, learnable=False):
    """timm's golden weights under our flat names; with RoPE, queries and keys by halves."""
    theirs = golden_weights("eva")
    ours = {"sos": theirs["cls_token"][0, 0]}
    if learnable:
        ours["positions"] = theirs["pos_embed"][0]
    for kind in ("weight", "bias"):
        ours[f"patch_embedding.{kind}"] = theirs[f"patch_embed.proj.{kind}"]
        ours[f"final_norm.{kind}"] = theirs[f"norm.{kind}"]
        for i in range(2):
            for part, name in PARTS.items():
                ours[f"blocks.{i}.{name}.{kind}"] = theirs[f"blocks.{i}.{part}.{kind}"]
            joined = theirs[f"blocks.{i}.attn.qkv.{kind}"]
            for j, name in enumerate(("query", "key", "value")):
                part = joined[16 * j : 16 * (j + 1)]
                rotated = name != "value" and not learnable
                ours[f"blocks.{i}.attention.{name}.{kind}"] = part[HALVES] if rotated else part
    return ours


def backbone_of(tensors, **model):
    keys = ("width", "depth", "num_heads", "mlp_dim", "patch_size", "rope_max_wavelength")
    known = {key: GOLDEN_MODEL[key] for key in keys}
    return build_backbone(LoadedModel(from_torch(tensors), None, known | model, 8, "golden"))


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("xy", {"positions": "rope2d"}),
        ("ij", {"positions": "rope2d", "rope_y_first": True}),
        ("none", {"positions": "none"}),
        ("absolute", {"positions": "learnable"}),
    ],
)
def test_timms_angles_are_ours(kind, model, mask):
    backbone = backbone_of(golden_as_ours(learnable=kind == "absolute"), **model)
    sizes = [size for size in ("8x8", "4x12") if f"eva/{kind}/{size}/{mask}" in golden()]
    assert sizes
    for size in sizes:
        found = block_features(backbone, golden()[f"images/{size}"], mask)
        expected = golden()[f"eva/{kind}/{size}/{mask}"]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("encoding", ["learnable", "rope2d"])
def test_the_arrays_are_timms(encoding):
    model = GOLDEN_MODEL | {"positions": encoding}
    ours, expected = golden_as_ours(learnable=encoding == "learnable"), golden_weights("eva")
    found = to_timm(ours, model, head=False)
    if encoding == "rope2d":
        del expected["pos_embed"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_y_first_is_permuted_to_timms_x_first():
    """What timm gets from weights of a model with y first, it computes with x first."""
    tensors = golden_as_ours()
    order = channel_order(16, 2, y_first=True)
    assert order.tolist() == [2, 6, 3, 7, 0, 4, 1, 5, 10, 14, 11, 15, 8, 12, 9, 13]
    model = GOLDEN_MODEL | {"positions": "rope2d", "rope_y_first": True}
    theirs = to_timm(tensors, model, head=False)
    for i in range(2):
        for kind in ("weight", "bias"):
            for j, name in enumerate(("query", "key", "value")):
                part = theirs[f"blocks.{i}.attn.qkv.{kind}"][16 * j : 16 * (j + 1)]
                halves = part if name == "value" else part[HALVES]
                tensors[f"blocks.{i}.attention.{name}.{kind}"] = halves
    x_first = backbone_of(tensors, positions="rope2d")
    found = block_features(x_first, golden()["images/4x12"], "causal")
    np.testing.assert_allclose(found, golden()["eva/ij/4x12/causal"], atol=TOLERANCE, rtol=0)


def test_a_model_that_timm_has_is_asked_for_by_its_own_name_and_others_by_arguments():
    keys = ("width", "depth", "num_heads", "mlp_dim", "patch_size")
    large, huge = (
        dict(zip(keys, size, strict=True))
        for size in ((1024, 24, 16, 4096, 16), (1280, 32, 16, 5120, 14))
    )
    assert architecture(large) == "vit_large_patch16_rope_224"
    assert architecture(huge) == "vit_base_patch16_rope_224"
    rest = {"positions": "rope2d", "grid": [16, 16], "channels": 3, "rope_max_wavelength": 1e4}
    arguments = model_args(huge | rest, 0)
    assert arguments["img_size"] == [224, 224] and arguments["depth"] == 32


@pytest.mark.parametrize("mlp_dim", [1, 33, 100, 341, 1000])
def test_any_mlp_can_be_asked_for_by_its_ratio(mlp_dim):
    model = GOLDEN_MODEL | {"positions": "none", "mlp_dim": mlp_dim, "width": 192}
    assert int(192 * model_args(model, 0)["mlp_ratio"]) == mlp_dim


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"positions": "rope1d"},
            r"has no config\.model\.positions='rope1d'; --format=safetensors",
        ),
        ({"norm_epsilon": 1e-5}, r"has no config\.model\.norm_epsilon=1e-05"),
        ({"mlp": "swiglu"}, r"has no config\.model\.mlp='swiglu'"),
        ({"objective": "classification", "start_token": "none"}, r"start_token='none'"),
        ({"order": {"name": "spiral"}}, r"config\.model\.order\.name is another one"),
    ],
)
def test_a_model_that_timm_cannot_compute_is_refused_before_anything_is_written(
    tmp_path, model, message
):
    with pytest.raises(ValueError, match=message):
        export(make_source(make_config(**model)), "timm", tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_head_is_kept_where_timm_can_read_it(tmp_path, pooling):
    source = make_source(classes=5)
    source.config["objective"]["pooling"] = pooling
    result = export(source, "timm", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["num_classes"] == (5 if pooling == "mean" else 0)
    assert ("the head" in result.dropped) == (pooling == "last")


@pytest.mark.parametrize(
    "model",
    [
        {"positions": "rope2d"},
        {"positions": "rope2d", "rope_y_first": True, "rope_max_wavelength": 50.0},
        {"positions": "none"},
        {"positions": "sincos2d"},
        {"positions": "learnable"},
    ],
)
def test_timm_loads_an_export_and_has_jax_features(tmp_path, model):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    source = make_source(make_config(**model), classes=5)
    loaded = as_loaded(source)
    result = export(source, "timm", tmp_path / "exported")
    scope = {}
    exec(result.usage(tmp_path / "exported"), scope)  # the code that the card shows
    from_folder = timm.create_model(f"local-dir:{tmp_path / 'exported'}", pretrained=True).eval()
    images = golden()["images/8x8"]
    x = torch.tensor(images).permute(0, 3, 1, 2)
    for theirs in (scope["model"], from_folder):
        for mask in ("causal", "full"):
            with torch.no_grad():
                features = theirs.forward_intermediates(
                    x,
                    output_fmt="NLC",
                    return_prefix_tokens=True,
                    intermediates_only=True,
                    is_causal=mask == "causal",
                )
            found = np.stack([torch.cat([sos, rest], 1) for rest, sos in features])
            expected = block_features(build_backbone(loaded), images, mask)
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    with torch.no_grad():
        tokens, logits = scope["model"].forward_features(x), scope["model"](x).numpy()
    head = loaded.params["head"]
    expected = tokens[:, 1:].mean(1).numpy() @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
