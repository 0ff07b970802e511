"""The PyTorch file against JAX, where PyTorch is installed."""

import ast
import importlib.util
import pathlib
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import darl_jax
from darl_jax.interchange.exporting import export
from darl_jax.interchange.loading import build_backbone, load_model
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.positions import POSITIONS, resample_positions
from tests.float64 import dense, layer_norm
from tests.interchange.small_run import (
    TOLERANCE,
    as_loaded,
    assert_same,
    block_features,
    golden,
    make_config,
    make_source,
)

PACKAGE = pathlib.Path(darl_jax.__file__).parent
MODULE = PACKAGE / "interchange" / "torch_module.py"


def exported(tmp_path, classes=0, **model):
    """A run exported as safetensors: its folder, and JAX's model of it."""
    source = make_source(make_config(**model), classes)
    export(source, "safetensors", tmp_path / "exported")
    return tmp_path / "exported", as_loaded(source)


def imported(path):
    """The file, imported as a user would, from where it lies."""
    spec = importlib.util.spec_from_file_location("darl_vit", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["darl_vit"] = module
    spec.loader.exec_module(module)
    return module


def test_the_file_needs_pytorch_alone_and_nothing_here_imports_it():
    imported = set()
    for node in ast.walk(ast.parse(MODULE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}
    others = [path for path in PACKAGE.rglob("*.py") if path != MODULE]
    assert not [path for path in others if "import torch_module" in path.read_text()]
    assert "torch" not in sys.modules or importlib.util.find_spec("torch")


@pytest.mark.parametrize("encoding", POSITIONS)
def test_pytorch_loads_an_export_and_has_jax_features(tmp_path, encoding):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    folder, loaded = exported(tmp_path, positions=encoding)
    model = imported(folder / "darl_vit.py").load()
    backbone = build_backbone(loaded)
    for mask in ("causal", "full"):
        for size in ("8x8", "4x12"):
            images = golden()[f"images/{size}"]
            with torch.no_grad():
                features = model(torch.tensor(images).permute(0, 3, 1, 2), mask)
            expected = block_features(backbone, images, mask)
            found = torch.stack(features.blocks).numpy()
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


AIM_V1 = {
    "positions": "sincos2d",
    "start_token": "none",
    "patch_norm": "layer",
    "attention_bias": False,
    "mlp_bias": False,
}
AIM_V2 = AIM_V1 | {
    "positions": "learnable",
    "patch_norm": "rms",
    "norm": "rms",
    "norm_epsilon": 1e-5,
    "mlp": "swiglu",
}
NEPA = {
    "positions": "rope_dinov3",
    "rope_max_wavelength": 100.0,
    "norm_epsilon": 1e-12,
    "layer_scale": 1e-5,
    "qk_norm": "plain",
}


@pytest.mark.parametrize(
    "model",
    [
        AIM_V1,
        AIM_V2,
        NEPA,
        NEPA | {"qk_norm": "scale", "start_token": "none", "order": {"name": "spiral"}},
        NEPA | {"norm": "rms", "norm_epsilon": 0.1, "mlp": "swiglu", "patch_norm": "layer"},
        AIM_V1 | {"positions": "rope2d", "mlp_bias": True},
    ],
)
def test_pytorch_has_the_features_of_other_backbones(tmp_path, model):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    model = {"objective": "classification"} | model
    folder, loaded = exported(tmp_path, classes=5, **model)
    assert_same(load_model(str(folder)).params, loaded.params)
    module = imported(folder / "darl_vit.py").load()
    images = golden()["images/8x8"]
    with torch.no_grad():
        features = module(torch.tensor(images).permute(0, 3, 1, 2), "full")
    expected = block_features(build_backbone(loaded), images, "full")
    found = torch.stack(features.blocks).numpy()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("rope2d", "round_robin"), ("rope1d", "spiral"), ("learnable", "spiral")],
)
def test_pytorch_has_the_order_of_the_patches(tmp_path, encoding, order):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    folder, loaded = exported(tmp_path, positions=encoding, order={"name": order})
    assert load_model(str(folder)).model["order"] == OrderConfig(order)
    model = imported(folder / "darl_vit.py").load()
    images = golden()["images/8x8"]
    with torch.no_grad():
        features = model(torch.tensor(images).permute(0, 3, 1, 2), "causal")
        with pytest.raises(ValueError, match=r"is known for a grid of \(4, 4\)"):
            model(torch.zeros(1, 3, 4, 12), "causal")
    expected = block_features(build_backbone(loaded), images, "causal")
    np.testing.assert_allclose(
        torch.stack(features.blocks).numpy(), expected, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize(("before", "after"), [(4, 6), (6, 4), (14, 24), (24, 14), (3, 16)])
def test_positions_are_resampled_as_jax_does_it(before, after):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    module = imported(MODULE)
    table = np.random.default_rng(0).normal(size=(before * 5, 3)).astype(np.float32)
    grids = (before, 5), (after, 7)
    found = module.resample_positions(torch.tensor(table), *grids).numpy()
    # JAX computes the weights in float32, from places up to 24.
    expected = resample_positions(jnp.asarray(table), *grids)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_pytorch_has_the_heads_logits(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    folder, loaded = exported(tmp_path, classes=5)
    model = imported(folder / "darl_vit.py").load()
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        found = model.logits(model.standardize(torch.tensor(images))).numpy()
    data, head = loaded.config["data"], loaded.params["head"]
    x = ((images / 255 - data["mean"]) / data["std"]).astype(np.float32)
    last = block_features(build_backbone(loaded), x, "full")[-1]
    tokens = layer_norm(loaded.params["backbone"]["final_norm"], last)
    expected = dense(head, tokens[:, 1:].mean(1))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_pytorch_says_what_is_wrong_with_a_file(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    folder, _ = exported(tmp_path)
    module = imported(folder / "darl_vit.py")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="truncated: its header says"):
        module.load()
    length = struct.unpack("<Q", whole[:8])[0]
    file.write_bytes(whole[: length // 2])
    with pytest.raises(ValueError, match="truncated in its header"):
        module.load()
    file.write_bytes(whole.replace(b'"sos"', b'"sox"'))
    with pytest.raises(ValueError, match=r"does not fit its config.*Missing key.*\"sos\""):
        module.load()
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"format_version": 2', '"format_version": 9'))
    with pytest.raises(ValueError, match=r"version 9; this file reads .*, version 2"):
        module.load()
