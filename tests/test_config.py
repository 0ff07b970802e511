"""A config is refused before anything is allocated, with the key and what would be right."""

import dataclasses
import importlib.util
import pathlib
import re

import jax
import ml_collections
import pytest

from darl_jax import config
from darl_jax.config import ConfigError, default_config, load
from darl_jax.nn import positions
from darl_jax.training import build
from darl_jax.training.state import graph_definition

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))

# Table 8, and darl's sizes: what every ImageNet config must say.
TABLE_8 = {
    "batch_size": 4096,
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


# Tables 9, 10 and 13.
FINE_TUNING = {
    "batch_size": 4096,
    "data.randaugment.magnitude": 9.0,
    "data.randaugment.std": 0.5,
    "objective.mixing.mixup": 0.8,
    "objective.mixing.cutmix": 1.0,
    "objective.label_smoothing": 0.1,
    "optimizer.name": "adamw",
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.95,
    "optimizer.layer_decay": 0.75,
    "optimizer.weight_decay": 0.05,
    "optimizer.warmup_epochs": 5.0,
}
# (epochs, learning rate, drop path)
FINE_TUNING_BY_SIZE = {
    "finetune_vit_b16": (90.0, 1e-3, 0.0),
    "finetune_vit_l16_50ep": (50.0, 1e-3, 0.0),
    "finetune_vit_l16": (90.0, 1e-3, 0.1),
    "finetune_vit_h14": (90.0, 3e-3, 0.2),
}
SUPERVISED = FINE_TUNING | {
    "total_epochs": 200.0,
    "model.drop_path": 0.2,
    "objective.pooling": "mean",
    "optimizer.learning_rate": None,
    "optimizer.base_learning_rate": 1e-4,
    "optimizer.layer_decay": 1.0,
    "optimizer.weight_decay": 0.3,
    "optimizer.warmup_epochs": 20.0,
}
LINEAR = {
    "batch_size": 16384,
    "total_epochs": 90.0,
    "model.drop_path": 0.0,
    "data.randaugment.magnitude": 0.0,
    "objective.kind": "linear",
    "objective.mask": "causal",
    "objective.pooling": "mean",
    "objective.label_smoothing": 0.1,
    "optimizer.name": "lars",
    "optimizer.momentum": 0.9,
    "optimizer.base_learning_rate": 0.1,
    "optimizer.learning_rate": None,
    "optimizer.weight_decay": 0.0,
    "optimizer.warmup_epochs": 10.0,
}


def read_config_file(path: pathlib.Path) -> ml_collections.ConfigDict:
    """A file's config, with what it leaves to its user."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = module.get_config()
    given.init.checkpoint = "runs/pretrained"
    return given


def configs(beginning: str) -> list:
    paths = [path for path in CONFIGS if path.stem.startswith(beginning)]
    assert paths
    return [pytest.param(path, id=path.stem) for path in paths]


def assert_says(loaded: config.TrainConfig, table: dict) -> None:
    for key, value in table.items():
        node = loaded
        for name in key.split("."):
            node = getattr(node, name)
        assert node == value, key


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_loads_and_its_model_can_be_built(path):
    loaded = load(read_config_file(path))
    if "cifar10" in path.stem:
        loaded = build.with_classes(loaded, 10, "cifar10")
    graph_definition(loaded.method.init)
    loaded.method
    assert loaded.batch_size * loaded.method.flops() > 0


@pytest.mark.parametrize("path", configs("darl_vit"))
def test_imagenet_config_is_table_8(path):
    loaded = load(read_config_file(path))
    table = dict(TABLE_8)
    *_, last = path.stem.split("_")
    if last in positions.POSITIONS:  # Table 1
        table["model.positions"] = last
    epochs = re.search(r"_(\d+)ep", path.stem)
    table["total_epochs"] = float(epochs[1]) if epochs else 800.0
    assert_says(loaded, table)
    model = loaded.model
    size = path.stem.split("_")[2]
    assert SIZES[size] == (
        model.width, model.depth, model.num_heads, model.mlp_dim, model.patch_size
    )  # fmt: skip


@pytest.mark.parametrize("path", configs("finetune_vit"))
def test_fine_tuning_is_table_9(path):
    loaded = load(read_config_file(path))
    assert_says(loaded, FINE_TUNING)
    row = max((n for n in FINE_TUNING_BY_SIZE if path.stem.startswith(n)), key=len)
    epochs, rate, drop_path = FINE_TUNING_BY_SIZE[row]
    pixels = re.search(r"_(\d+)px", path.stem)
    assert_says(
        loaded,
        {
            "total_epochs": epochs,
            "optimizer.learning_rate": rate,
            "model.drop_path": drop_path,
            "objective.mask": "causal" if "causal" in path.stem else "full",
            "objective.pooling": "mean" if "mean" in path.stem else "last",
            "data.image_size": int(pixels[1]) if pixels else 224,
            "model.trained_image_size": 224 if "384px" in path.stem else None,
        },
    )


ORDERED = [path for path in CONFIGS if "_256px_" in path.stem or "two_stream" in path.stem]


@pytest.mark.parametrize("path", ORDERED, ids=lambda path: path.stem)
def test_orders_are_those_of_table_7_and_figure_6(path):
    name, block = re.search(r"_(?:256px|400ep)_([a-z_]+?)(?:_(\d))?$", path.stem).groups()
    loaded = load(read_config_file(path))
    assert (loaded.model.order.name, loaded.model.order.block) == (name, int(block or 2))
    assert loaded.model.two_stream == ("two_stream" in path.stem)
    if not loaded.model.two_stream:
        assert loaded.grid == (16, 16)


@pytest.mark.parametrize("path", configs("supervised_vit"))
def test_supervised_training_is_table_10(path):
    loaded = load(read_config_file(path))
    mask = "causal" if path.stem.endswith("_causal") else "full"
    encoding = path.stem.removesuffix("_causal").split("_")[-1]
    assert_says(loaded, SUPERVISED | {"objective.mask": mask, "model.positions": encoding})


@pytest.mark.parametrize("path", configs("linear_vit"))
def test_linear_evaluation_is_table_13(path):
    assert_says(load(read_config_file(path)), LINEAR)


@pytest.mark.parametrize("name", ["finetune_vit_b16", "linear_vit_b16"])
def test_a_key_that_is_left_to_the_user_is_named(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS[0].parent / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ConfigError, match=r"config.init.checkpoint has no value: give --config\."):
        load(module.get_config())


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
        (
            {"model.order.name": "nested_raster", "model.order.block": 3},
            "config.model.order.block=3 must divide the grid of 14 x 14",
        ),
        (
            {"model.order.name": "random"},
            "config.model.order.name='random' needs model.two_stream=True",
        ),
        (
            {"model.two_stream": True, "model.positions": "rope1d"},
            "config.model.two_stream=True asks for patches by their places, which model.positions=",
        ),
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


@pytest.mark.parametrize("objective", ["classification", "probes"])
def test_two_streams_are_for_pre_training_alone(objective):
    values = default_config(objective=objective)
    values.model.two_stream = True
    message = f"config.model.two_stream must be False with config.objective.name='{objective}'"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(values)


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
