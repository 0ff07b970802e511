"""A config is refused before anything is allocated, with the key and what would be right."""

import dataclasses
import importlib.util
import pathlib

import jax
import ml_collections
import pytest

from darl_jax import build, config
from darl_jax.config import ConfigError, default_config, load
from darl_jax.train_state import graph_definition

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))

# Table 8, and darl's sizes: what every ImageNet config must say.
TABLE_8 = {
    "batch_size": 4096,
    "total_epochs": 800.0,
    "optimizer.base_learning_rate": 1.5e-4,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.weight_decay": 0.05,
    "optimizer.warmup_epochs": 40.0,
    "optimizer.clip_norm": 0.0,
    "model.positions": "rope2d",
    "data.crop_scale": (0.2, 1.0),
    "data.flip": True,
}
SIZES = {
    "b16": (768, 12, 12, 3072, 16),
    "l16": (1024, 24, 16, 4096, 16),
    "h14": (1280, 32, 16, 5120, 14),
    "l8": (1024, 24, 16, 4096, 8),
}


def read_config_file(path: pathlib.Path) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_loads_and_its_model_can_be_built(path):
    loaded = load(read_config_file(path))
    graph_definition(build.model_builder(loaded))
    build.build_objective(loaded)
    assert build.step_flops(loaded) > 0


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if p.stem.startswith("darl_vit")], ids=lambda path: path.stem
)
def test_imagenet_config_is_table_8(path):
    loaded = load(read_config_file(path))
    for key, value in TABLE_8.items():
        node = loaded
        for name in key.split("."):
            node = getattr(node, name)
        assert node == value, key
    model = loaded.model
    size = path.stem.split("_")[2]
    assert SIZES[size] == (
        model.width, model.depth, model.num_heads, model.mlp_dim, model.patch_size
    )  # fmt: skip


def test_config_survives_the_round_trip_through_a_config_dict():
    loaded = load(default_config(objective="diffusion", size="L"))
    assert loaded == dataclasses.replace(loaded)
    assert config.to_dict(loaded)["model"]["width"] == 1024
    assert load(config._to_config_dict(loaded)) == loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.widht": 3}, "config.model.widht is no key; did you mean config.model.width?"),
        ({"modle": 3}, "config.modle is no key; did you mean config.model?"),
        ({"batch_size": "8"}, "config.batch_size='8' is a str; it must be a int"),
        ({"model.width": 2.5}, "config.model.width=2.5 is a float; it must be a int"),
        ({"data.flip": 1}, "config.data.flip=1 is a int; it must be a bool"),
        ({"data.crop_scale": (0.2,)}, "config.data.crop_scale=(0.2,) must have 2 entries"),
        ({"optimizer": 3}, "config.optimizer=3 must be a group of keys"),
        ({"objective.name": "mae"}, "config.objective.name='mae' is unknown"),
        ({"evaluation.probe.pooling": "max"}, "config.evaluation.probe.pooling='max' is unknown"),
        ({"model.positions": "rope"}, "config.model.positions='rope' is unknown"),
        ({"model.patch_size": 15}, "config.model.patch_size=15 must divide"),
        ({"batch_size": 0}, "config.batch_size=0 must be at least 1"),
        ({"total_steps": 0}, "config.total_steps=0 must be at least 1"),
    ],
)
def test_error_names_the_key_and_what_would_be_right(change, message):
    values = default_config().to_dict()
    for key, value in change.items():
        *groups, last = key.split(".")
        node = values
        for group in groups:
            node = node[group]
        node[last] = value
    with pytest.raises(ConfigError) as caught:
        load(ml_collections.ConfigDict(values))
    assert str(caught.value).startswith(message)


def test_missing_key_is_an_error():
    values = default_config().to_dict()
    del values["data"]["flip"]
    with pytest.raises(ConfigError, match=r"config.data.flip is missing"):
        load(ml_collections.ConfigDict(values))


def test_whole_number_serves_as_a_float_and_none_as_no_steps():
    values = default_config()
    values.total_epochs = 3
    assert load(values).total_epochs == 3.0
    assert load(values).total_steps is None


def test_nothing_is_put_on_a_device_by_loading_a_config():
    before = len(jax.live_arrays())
    load(default_config(objective="diffusion", size="H"))
    assert len(jax.live_arrays()) == before
