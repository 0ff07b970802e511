"""The PyTorch file against JAX: by stored numbers always, and by running it where PyTorch is."""

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
from darl_jax.interchange.loading import LoadedModel, build_backbone, load_model
from darl_jax.interchange.names import from_torch
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.positions import POSITIONS, resample_positions
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

PACKAGE = pathlib.Path(darl_jax.__file__).parent
MODULE = PACKAGE / "interchange" / "torch_module.py"


def exported(tmp_path, classes=0, **model):
    """A run exported as safetensors: its folder, and JAX's model of it."""
    source = make_source(make_config(**model), classes)
    export(source, "safetensors", tmp_path / "exported")
    return tmp_path / "exported", as_loaded(source)


def module_in(folder):
    """The exported file, imported as a user would, from where it lies."""
    spec = importlib.util.spec_from_file_location("darl_vit", folder / "darl_vit.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["darl_vit"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("encoding", POSITIONS)
def test_jax_has_the_features_that_pytorch_had(encoding, mask):
    weights = golden_weights("module")
    if encoding != "learnable":
        del weights["positions"]
    keys = ("width", "depth", "num_heads", "mlp_dim", "patch_size", "rope_max_wavelength")
    model = {key: GOLDEN_MODEL[key] for key in keys} | {"positions": encoding}
    loaded = LoadedModel(from_torch(weights), None, model, 8, "golden")
    backbone = build_backbone(loaded)
    for size in ("8x8", "4x12"):
        found = block_features(backbone, golden()[f"images/{size}"], mask)
        expected = golden()[f"module/{encoding}/{size}/{mask}"]
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


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
    model = module_in(folder).load()
    backbone = build_backbone(loaded)
    for mask in ("causal", "full"):
        for size in ("8x8", "4x12"):
            images = golden()[f"images/{size}"]
            with torch.no_grad():
                features = model(torch.tensor(images).permute(0, 3, 1, 2), mask)
            expected = block_features(backbone, images, mask)
            found = torch.stack(features.blocks).numpy()
            np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("order", ["round_robin", "spiral"])
@pytest.mark.parametrize("encoding", ["rope2d", "rope1d", "learnable"])
def test_pytorch_has_the_order_of_the_patches(tmp_path, encoding, order):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    folder, loaded = exported(tmp_path, positions=encoding, order={"name": order})
    assert load_model(str(folder)).model["order"] == OrderConfig(order)
    model = module_in(folder).load()
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
    spec = importlib.util.spec_from_file_location("darl_vit", MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = np.random.default_rng(0).normal(size=(before * 5, 3)).astype(np.float32)
    grids = (before, 5), (after, 7)
    found = module.resample_positions(torch.tensor(table), *grids).numpy()
    # JAX computes the weights in float32, from places up to 24.
    expected = resample_positions(jnp.asarray(table), *grids)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_pytorch_has_the_heads_logits(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    folder, loaded = exported(tmp_path, classes=5)
    model = module_in(folder).load()
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        found = model.logits(model.standardize(torch.tensor(images))).numpy()
    data, head = loaded.config["data"], loaded.params["head"]
    x = ((images / 255 - data["mean"]) / data["std"]).astype(np.float32)
    last = block_features(build_backbone(loaded), x, "full")[-1].astype(np.float64)
    norm = loaded.params["backbone"]["final_norm"]
    centered = last - last.mean(-1, keepdims=True)
    tokens = centered / np.sqrt(last.var(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
    expected = tokens[:, 1:].mean(1) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_pytorch_says_what_is_wrong_with_a_file(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    folder, _ = exported(tmp_path)
    module = module_in(folder)
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


def test_the_config_of_an_export_is_the_runs(tmp_path):
    folder, loaded = exported(tmp_path)
    for path in (folder, folder / "model.safetensors"):
        again = load_model(str(path))
        assert (again.config, again.model) == (loaded.config, loaded.model)
        assert (again.trained_image_size, again.step) == (8, 3)
