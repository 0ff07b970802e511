"""Adapters alone, merged on export, and beside the parameters of another checkpoint."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from darl_jax import config as config_lib
from darl_jax.interchange.adapters import without_adapters
from darl_jax.interchange.exporting import export
from darl_jax.interchange.initialization import transfer
from darl_jax.interchange.loading import build_backbone, load_model
from darl_jax.interchange.safetensors_files import read_safetensors
from darl_jax.nn.lora import is_adapter
from darl_jax.training.state import parameters
from tests.interchange.small_run import as_loaded, assert_same, make_source
from tests.tiny_runs import tiny


@pytest.fixture(scope="module")
def source():
    config = tiny(
        "classification",
        objective__lora__names=("query", "out", "down"),
        objective__lora__alpha=4.0,
        objective__num_classes=10,
        model__patch_size=2,
    )
    return make_source(config)


def adapters_in(tree):
    return [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
        if is_adapter(tuple(key.key for key in path))
    ]


def test_adapters_alone_are_all_that_was_trained(source, tmp_path):
    result = export(source, "adapters", tmp_path / "out")
    arrays = read_safetensors(tmp_path / "out" / "adapters.safetensors")
    layers = ("attention/query", "attention/out", "mlp/down")
    assert {*arrays} == {"head/kernel", "head/bias"} | {
        f"backbone/blocks/{layer}/lora/{name}/kernel" for layer in layers for name in "ab"
    }
    np.testing.assert_array_equal(arrays["head/kernel"], source.params["head"]["kernel"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["adapters"] == {"names": ["query", "out", "down"], "rank": 8, "alpha": 4.0}
    found: dict = {}
    exec(result.usage(tmp_path / "out"), found)
    a, b = (arrays[f"backbone/blocks/attention/query/lora/{name}/kernel"] for name in "ab")
    assert found["layer"].startswith("backbone/blocks/")
    if found["layer"].endswith("query"):
        np.testing.assert_allclose(found["update"], 0.5 * a @ b, rtol=1e-6)


@pytest.mark.parametrize("place", ["", "adapters.safetensors"])
def test_adapters_alone_are_nothing_to_start_from(source, tmp_path, place):
    export(source, "adapters", tmp_path / "out")
    message = r"holds adapters without the backbone .* --format=safetensors, which merges"
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "out" / place))


@pytest.mark.parametrize("form", ["safetensors", "timm"])
def test_the_backbone_of_probes_is_exported_with_merged_adapters(tmp_path, form):
    config = tiny(
        "probes", objective__kind="attentive", objective__blocks=(2,), model__positions="rope2d",
        objective__lora__names=("query", "value", "out"), objective__num_classes=10,
    )  # fmt: skip
    source = make_source(config)
    probe = sum(leaf.size for leaf in jax.tree.leaves(source.params["probes"]))
    result = export(source, form, tmp_path / "out")
    assert result.dropped == f"the probes ({probe:,} parameters)"
    if form == "safetensors":
        expected, _ = without_adapters(source.params, source.config)
        loaded = load_model(str(tmp_path / "out"))
        assert_same(loaded.params, {"backbone": expected["backbone"]})


@pytest.mark.parametrize("form", ["safetensors", "orbax"])
def test_exports_hold_merged_kernels_with_the_features_of_the_adapters(source, tmp_path, form):
    export(source, form, tmp_path / "out")
    loaded = load_model(str(tmp_path / "out"))
    assert not adapters_in(loaded.params)
    assert not loaded.config["objective"]["lora"]["names"]
    w = source.params["backbone"]["blocks"]["attention"]["query"]
    expected = np.float64(w["kernel"]) + 0.5 * np.float64(w["lora"]["a"]["kernel"]) @ np.float64(
        w["lora"]["b"]["kernel"]
    )
    merged = loaded.params["backbone"]["blocks"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(merged, expected, atol=1e-6)


def test_the_backbone_of_a_run_is_built_with_merged_adapters(source):
    expected, _ = without_adapters(source.params, source.config)
    built = parameters(build_backbone(as_loaded(source)))
    jax.tree.map(np.testing.assert_array_equal, built, expected["backbone"])


def test_adapters_are_new_beside_a_pre_trained_backbone_and_are_not_lost(source):
    params, _ = without_adapters(source.params, source.config)
    plain = dataclasses.replace(as_loaded(source), params=params)
    result = transfer(source.params, plain)
    assert len(result.new) == len(adapters_in(source.params)) == 6
    assert all(path.split("/")[-3] == "lora" for path in result.new)
    with pytest.raises(config_lib.ConfigError, match=r"lora/a/kernel: present in the checkpoint"):
        transfer(params, as_loaded(source))
