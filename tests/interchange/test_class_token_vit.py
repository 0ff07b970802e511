"""MAE's and timm's ViTs as starting points: features in timm against JAX's after import."""

import argparse
import sys

import numpy as np
import pytest

from darl_jax.interchange.described import PLAIN_VIT
from darl_jax.interchange.loading import build_backbone, load_model
from darl_jax.interchange.safetensors_files import write_safetensors
from tests.interchange.small_run import TOLERANCE, block_features, golden, golden_weights


def saved(tmp_path, tensors):
    path = tmp_path / "vit.safetensors"
    write_safetensors(path, tensors, {})
    return str(path)


@pytest.mark.parametrize(
    ("kind", "encoding", "name"),
    [("vit", "learnable", "timm ViT checkpoint"), ("mae", "sincos2d", "MAE checkpoint")],
)
def test_an_imported_vit_has_timms_features(tmp_path, kind, encoding, name):
    loaded = load_model(saved(tmp_path, golden_weights(kind)))
    shape = {"width": 16, "depth": 2, "mlp_dim": 32, "patch_size": 2}
    assert loaded.model == PLAIN_VIT | shape | {"positions": encoding}
    assert loaded.config is None and loaded.trained_image_size == 8
    assert loaded.description.startswith(f"{name} {tmp_path}/vit.safetensors")
    assert set(loaded.params) == {"backbone"}
    backbone = build_backbone(loaded, num_heads=2)
    found = block_features(backbone, golden()["images/8x8"], "full")
    np.testing.assert_allclose(found, golden()[f"{kind}/8x8"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.bin"])
def test_a_header_whose_length_begins_like_a_pickle_is_read(tmp_path, name):
    path = tmp_path / name
    for padding in range(0, 512, 8):
        write_safetensors(path, golden_weights("vit"), {"padding": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert load_model(str(path)).model["width"] == 16


def test_positions_that_are_not_quite_maes_are_learnable(tmp_path):
    tensors = golden_weights("mae")
    tensors["pos_embed"][0, 5, 3] += 1e-3
    loaded = load_model(saved(tmp_path, tensors))
    assert loaded.model["positions"] == "learnable"
    table = loaded.params["backbone"]["positions"]
    np.testing.assert_array_equal(table, tensors["pos_embed"][0, 1:])


def test_positions_without_the_class_tokens_and_projections_without_bias(tmp_path):
    """timm's no_embed_class and qkv_bias=False: the same as a position and biases of 0."""
    tensors = golden_weights("vit")
    tensors["pos_embed"][:, 0] = 0
    for i in range(2):
        tensors[f"blocks.{i}.attn.qkv.bias"][:] = 0
    expected = load_model(saved(tmp_path, tensors)).params["backbone"]
    tensors["pos_embed"] = np.ascontiguousarray(tensors["pos_embed"][:, 1:])
    for i in range(2):
        del tensors[f"blocks.{i}.attn.qkv.bias"]
    found = load_model(saved(tmp_path, tensors)).params["backbone"]
    np.testing.assert_array_equal(found["sos"], expected["sos"])
    np.testing.assert_array_equal(found["positions"], expected["positions"])
    np.testing.assert_array_equal(found["blocks"]["attention"]["key"]["bias"], np.zeros((2, 16)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blocks.0.attn.q_norm.weight", "qk_norm"),
        ("reg_token", "register tokens"),
        ("norm_pre.weight", "before the first block"),
        ("blocks.0.attn.q_bias", "EVA's"),
        ("rope.freqs", "rotary"),
        ("blocks.1.mlp.w12.weight", "gated"),
    ],
)
def test_a_model_that_ours_cannot_compute_is_refused_by_name(tmp_path, name, reason):
    tensors = golden_weights("vit") | {name: np.ones(16, np.float32)}
    with pytest.raises(ValueError, match=f"vit.safetensors has {name}: .*{reason}"):
        load_model(saved(tmp_path, tensors))


def test_what_is_missing_or_too_much_is_named_as_in_the_file(tmp_path):
    tensors = golden_weights("vit")
    for name in ("blocks.1.attn.qkv.weight", "norm.bias", "cls_token"):
        rest = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(ValueError, match=f"has no array {name}"):
            load_model(saved(tmp_path, rest))
    with pytest.raises(ValueError, match="has adapter, which a plain ViT"):
        load_model(saved(tmp_path, tensors | {"adapter": np.ones(3, np.float32)}))
    tensors["pos_embed"] = np.ones((1, 8, 16), np.float32)
    with pytest.raises(ValueError, match="8 positions, which fit no square grid"):
        load_model(saved(tmp_path, tensors))


def test_the_number_of_heads_has_to_be_given(tmp_path):
    loaded = load_model(saved(tmp_path, golden_weights("vit")))
    with pytest.raises(ValueError, match="lacks the number of heads: give num_heads"):
        build_backbone(loaded)


def test_without_pytorch_its_checkpoints_say_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "mae.pth"
    path.write_bytes(b"PK\x03\x04 and so on")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"mae.pth is a PyTorch checkpoint, .*or save it as"):
        load_model(str(path))


@pytest.mark.parametrize("nested", ["model", None])
def test_pytorch_checkpoints_are_read(tmp_path, nested):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = {name: torch.tensor(value) for name, value in golden_weights("mae").items()}
    content = {nested: tensors, "args": argparse.Namespace(lr=1.0)} if nested else tensors
    path = tmp_path / "mae.pth"
    torch.save(content, path)
    loaded = load_model(str(path))
    backbone = build_backbone(loaded, num_heads=2)
    found = block_features(backbone, golden()["images/8x8"], "full")
    np.testing.assert_allclose(found, golden()["mae/8x8"], atol=TOLERANCE, rtol=0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"mae.pth is truncated: it begins like"):
        load_model(str(path))
    path.write_bytes(b"\x80\x02 and no more")
    with pytest.raises(ValueError, match=r"mae.pth cannot be read as a PyTorch checkpoint"):
        load_model(str(path))
