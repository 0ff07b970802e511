"""Configs say the paper's tables, and a wrong one is refused with the key and a right value."""

import functools
import operator
import pathlib
import re
import runpy

import jax
import ml_collections
import pytest

from darl_jax.config import (
    MAY_CHANGE_ON_RESUME,
    ConfigError,
    data_config,
    default_config,
    evaluator,
    from_file,
    load,
    to_config_dict,
)
from darl_jax.evaluators import EVALUATORS
from darl_jax.methods import METHODS
from darl_jax.training.optimizers import OPTIMIZERS
from darl_jax.training.state import graph_definition

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def given(name: str) -> ml_collections.ConfigDict:
    """The config of FILE or FILE:WORD, with a checkpoint to start from."""
    file, colon, word = name.partition(":")
    config = from_file(f"{CONFIGS / file}.py{colon}{word}")
    config.init.checkpoint = "runs/pretrained"
    return config


@functools.cache
def words_of(path: pathlib.Path) -> dict:
    return runpy.run_path(str(path)).get("WORDS", {})


FILES = sorted(CONFIGS.glob("*.py"))
NAMES = [f"{path.stem}:{word}".rstrip(":") for path in FILES for word in words_of(path) or [""]]

# --- the paper's tables --------------------------------------------------------------------------

# fmt: off
TABLE_8 = {
    "batch_size": 4096, "total_epochs": 800.0, "objective.name": "mse", "optimizer.name": "adamw",
    "optimizer.base_learning_rate": 1.5e-4, "optimizer.b1": 0.9, "optimizer.b2": 0.95,
    "optimizer.layer_decay": 1.0, "optimizer.weight_decay": 0.05, "optimizer.warmup_epochs": 40.0,
    "optimizer.clip_norm": 0.0, "model.positions": "rope2d", "model.order.name": "raster",
    "model.drop_path": 0.0, "data.dataset": "imagenet2012", "data.image_size": 224,
    "data.crop_scale": (0.2, 1.0), "data.flip": True,
}
DIFFUSION = {
    "objective.name": "diffusion", "objective.prediction": "x0", "objective.schedule.name": "beta",
    "objective.schedule.a": 0.03, "objective.schedule.b": 1.0,
    "objective.patch_decoder.kind": "transformer", "objective.patch_decoder.layers": 1,
    "objective.patch_decoder.condition_on_gamma": False,
}
APPENDIX_F = {
    "objective.schedule.a": 1.0, "objective.patch_decoder.layers": 8,
    "objective.patch_decoder.condition_on_gamma": True, "data.image_size": 64,
}
SHAPE = ("width", "depth", "num_heads", "mlp_dim", "patch_size")
B16, L16, H14, L8 = (
    {f"model.{key}": value for key, value in zip(SHAPE, values, strict=True)}
    for values in (
        (768, 12, 12, 3072, 16), (1024, 24, 16, 4096, 16), (1280, 32, 16, 5120, 14),
        (1024, 24, 16, 4096, 8),
    )
)
LABELS = {
    "batch_size": 4096, "data.dataset": "imagenet2012", "data.image_size": 224,
    "data.crop_scale": (0.08, 1.0), "data.randaugment.magnitude": 9.0, "data.randaugment.std": 0.5,
    "objective.name": "classification", "objective.num_classes": None,
    "objective.mixing.mixup": 0.8, "objective.mixing.cutmix": 1.0, "objective.label_smoothing": 0.1,
    "optimizer.name": "adamw", "optimizer.b1": 0.9, "optimizer.b2": 0.95,
}
TABLE_9 = LABELS | {
    "total_epochs": 90.0, "model.positions": "rope2d", "model.order.name": "raster",
    "model.trained_image_size": None, "objective.mask": "full", "objective.pooling": "last",
    "optimizer.learning_rate": 1e-3, "optimizer.layer_decay": 0.75, "optimizer.weight_decay": 0.05,
    "optimizer.warmup_epochs": 5.0,
}
TABLE_9_50 = TABLE_9 | L16 | {"total_epochs": 50.0, "model.drop_path": 0.0}
TABLE_10 = LABELS | L16 | {
    "total_epochs": 200.0, "model.drop_path": 0.2, "objective.pooling": "mean",
    "optimizer.base_learning_rate": 1e-4, "optimizer.layer_decay": 1.0,
    "optimizer.weight_decay": 0.3, "optimizer.warmup_epochs": 20.0,
}
TABLE_13 = {
    "batch_size": 16384, "total_epochs": 90.0, "model.drop_path": 0.0,
    "data.crop_scale": (0.08, 1.0), "data.randaugment.magnitude": 0.0, "objective.name": "probes",
    "objective.kind": "linear", "objective.mask": "causal", "objective.pooling": "mean",
    "objective.label_smoothing": 0.1, "optimizer.name": "lars", "optimizer.momentum": 0.9,
    "optimizer.base_learning_rate": 0.1, "optimizer.weight_decay": 0.0,
    "optimizer.warmup_epochs": 10.0,
}
AIM = {
    "batch_size": 1024, "total_epochs": 100.0, "data.randaugment.magnitude": 9.0,
    "objective.name": "probes", "objective.kind": "attentive", "objective.average_blocks": 6,
    "optimizer.name": "adamw", "optimizer.learning_rate": 1e-3,
    "optimizer.final_learning_rate": 1e-5, "optimizer.b2": 0.999, "optimizer.weight_decay": 0.1,
    "optimizer.clip_norm": 3.0, "optimizer.warmup_epochs": 5.0,
}
AIM_LORA = {"objective.lora.names": ("query", "value", "out"), "objective.lora.rank": 8}
NEPA = {
    "model.patch_size": 14, "model.positions": "rope_dinov3", "model.rope_max_wavelength": 100.0,
    "model.rope_rescale": 2.0, "model.norm": "layer", "model.norm_epsilon": 1e-12,
    "model.layer_scale": 1e-5, "model.initialization": "normal", "model.mlp": "gelu",
    "model.start_token": "learned", "data.dataset": "imagenet2012", "data.image_size": 224,
    "data.crop_scale": (0.08, 1.0), "data.mean": (0.5, 0.5, 0.5), "data.std": (0.5, 0.5, 0.5),
    "data.flip": True, "optimizer.weight_decay": 0.05, "optimizer.b1": 0.9, "ema_decay": 0.9999,
}
NEPA_PRETRAINING = NEPA | {
    "batch_size": 4096, "total_epochs": 1600.0, "objective.name": "next_embedding",
    "objective.stop_gradient": True, "model.drop_path": 0.0, "data.randaugment.magnitude": 0.0,
    "optimizer.base_learning_rate": 3e-4, "optimizer.b2": 0.95, "optimizer.warmup_epochs": 40.0,
    "optimizer.layer_decay": 1.0,
}
NEPA_FINE_TUNING = LABELS | NEPA | {
    "batch_size": 1024, "total_epochs": 100.0, "objective.mask": "full",
    "objective.pooling": "mean", "objective.freeze_patch_embedding": True,
    "objective.mixing.erasing_probability": 0.25, "optimizer.b2": 0.999,
}
AIM_PRETRAINING = {
    "batch_size": 4096, "total_epochs": None, "model.patch_size": 14, "model.positions": "sincos2d",
    "model.start_token": "none", "model.patch_norm": "layer", "model.attention_bias": False,
    "model.mlp_bias": False, "model.norm": "layer", "model.norm_epsilon": 1e-6, "model.mlp": "gelu",
    "model.qk_norm": "none", "model.layer_scale": 0.0, "model.drop_path": 0.0,
    "model.order.name": "raster", "objective.name": "aim", "objective.attention": "prefix",
    "objective.normalize_target": True, "objective.head.kind": "mlp", "objective.head.depth": 12,
    "objective.head.width": 2048, "objective.head.identity_attention": True,
    "optimizer.name": "adamw", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.05,
    "optimizer.initial_learning_rate": 1e-6, "optimizer.final_learning_rate": 0.0,
    "optimizer.b1": 0.9, "optimizer.b2": 0.95, "optimizer.eps": 1e-8, "optimizer.clip_norm": 1.0,
    "data.image_size": 224, "data.crop_scale": (0.4, 1.0), "data.flip": True,
}
# Of a word: the last of the six blocks whose mean is read.
AIM_BLOCKS = {
    f"attentive_aim:{size}_{end}": {"objective.blocks": (block,)}
    for size, depth, best in (("600m", 24, 20), ("1b", 24, 18), ("3b", 24, 18), ("7b", 32, 20))
    for end, block in (("last", depth), ("best", best), ("grid", best), ("lora", depth))
}
AIM_600M, AIM_1B, AIM_3B, AIM_7B = (
    AIM_PRETRAINING | {
        "total_steps": steps, "optimizer.warmup_steps": warmup, "model.width": width,
        "model.depth": depth, "model.num_heads": heads, "model.mlp_dim": mlp,
    }
    for steps, warmup, width, depth, heads, mlp in (
        (500_000, 12_500, 1536, 24, 12, 6144), (1_200_000, 30_000, 2048, 24, 16, 8192),
        (1_200_000, 30_000, 3072, 24, 24, 12288), (1_200_000, 30_000, 4096, 32, 32, 16384),
    )
)
MAE = {
    "batch_size": 4096, "total_epochs": 800.0, "model.positions": "sincos2d",
    "model.fused_qkv_init": True, "objective.name": "mae", "objective.mask_ratio": 0.75,
    "objective.normalize_target": False, "objective.decoder.width": 512,
    "objective.decoder.depth": 8, "objective.decoder.num_heads": 16,
    "objective.decoder.mlp_dim": 2048, "data.crop_scale": (0.2, 1.0), "data.flip": True,
    "data.dataset": "imagenet2012", "data.randaugment.magnitude": 0.0, "ema_decay": 0.0,
    "optimizer.base_learning_rate": 1.5e-4, "optimizer.final_learning_rate": 0.0,
    "optimizer.b1": 0.9, "optimizer.b2": 0.95, "optimizer.eps": 1e-8, "optimizer.clip_norm": 0.0,
    "optimizer.weight_decay": 0.05, "optimizer.warmup_epochs": 40.0,
}
MAE_FINE_TUNING = LABELS | {
    "batch_size": 1024, "total_epochs": 50.0, "model.positions": "learnable",
    "objective.mask": "full", "objective.pooling": "mean", "objective.norm_after_pooling": True,
    "objective.mixing.erasing_probability": 0.25, "optimizer.learning_rate": None,
    "optimizer.base_learning_rate": 1e-3, "optimizer.final_learning_rate": 1e-6,
    "optimizer.b2": 0.999, "optimizer.layer_decay": 0.75, "optimizer.weight_decay": 0.05,
    "optimizer.warmup_epochs": 5.0, "optimizer.clip_norm": 0.0, "data.eval_crop": 0.875,
}
MAE_FINE_TUNING_B = MAE_FINE_TUNING | B16 | {
    "total_epochs": 100.0, "model.drop_path": 0.1, "optimizer.base_learning_rate": 5e-4,
    "optimizer.layer_decay": 0.65,
}
MAE_LINEAR = TABLE_13 | {
    "model.positions": "sincos2d", "objective.mask": "full", "objective.pooling": "start",
    "objective.final_norm": True, "objective.label_smoothing": 0.0,
}
# fmt: on
SIZES = {"b16": B16, "l16": L16, "h14": H14}


def aim_backbone(name: str) -> dict:
    """Keys of AIM's model, read under full attention, for FILE:SIZE_END."""
    sizes = {"600m": AIM_600M, "1b": AIM_1B, "3b": AIM_3B, "7b": AIM_7B}
    of = sizes[name.partition(":")[2].split("_")[0]]
    keys = {key: value for key, value in of.items() if key.startswith("model.")}
    return keys | {"objective.mask": "full", "data.crop_scale": (0.08, 1.0)}


# Words of ablations say themselves which keys differ from these.
PAPER = {
    "darl_vit_b16_mse": TABLE_8 | B16,
    "darl_vit_l16_mse": TABLE_8 | L16,
    "darl_vit_h14_mse": TABLE_8 | H14,
    "darl_vit_b16_diffusion": TABLE_8 | B16 | DIFFUSION,
    "darl_vit_l16_diffusion": TABLE_8 | L16 | DIFFUSION,
    "darl_vit_h14_diffusion": TABLE_8 | H14 | DIFFUSION,
    "darl_vit_l8_64px_generation": TABLE_8 | L8 | DIFFUSION | APPENDIX_F,
    "darl_vit_l16_positions": TABLE_8 | L16 | {"total_epochs": 400.0},
    "darl_vit_l16_orders": TABLE_8 | L16 | {"total_epochs": 100.0},
    "darl_vit_l16_two_stream":
        TABLE_8 | L16 | {"total_epochs": 400.0, "objective.two_stream": True},
    "finetune_vit_b16": TABLE_9 | B16 | {"model.drop_path": 0.0},
    "finetune_vit_l16": TABLE_9 | L16 | {"model.drop_path": 0.1},
    "finetune_vit_h14": TABLE_9 | H14 | {"model.drop_path": 0.2, "optimizer.learning_rate": 3e-3},
    "finetune_vit_l16_50ep": TABLE_9_50,
    "supervised_vit_l16": TABLE_10,
    "nepa_vit_b14:pretrain": B16 | NEPA_PRETRAINING | {"model.qk_norm": "plain"},
    "nepa_vit_l14:pretrain": L16 | NEPA_PRETRAINING | {"model.qk_norm": "scale"},
    "nepa_vit_b14:finetune": B16 | NEPA_FINE_TUNING | {
        "model.qk_norm": "plain", "model.drop_path": 0.1, "data.eval_crop": 0.875,
        "optimizer.base_learning_rate": 1.5e-3, "optimizer.layer_decay": 0.65,
        "optimizer.warmup_epochs": 20.0,
    },
    "nepa_vit_l14:finetune": L16 | NEPA_FINE_TUNING | {
        "model.qk_norm": "scale", "model.drop_path": 0.2, "data.eval_crop": 0.95,
        "optimizer.base_learning_rate": 1e-3, "optimizer.layer_decay": 0.75,
        "optimizer.warmup_epochs": 30.0,
    },
    "linear_vit": TABLE_13,
    "attentive_vit": AIM,
    **{
        name: AIM | aim_backbone(name) | blocks | (AIM_LORA if name.endswith("lora") else {})
        for name, blocks in AIM_BLOCKS.items()
    },
    "aim_600m": AIM_600M,
    "aim_1b": AIM_1B,
    "aim_3b": AIM_3B,
    "aim_7b": AIM_7B,
    "mae_vit_b16": MAE | B16,
    "mae_vit_l16": MAE | L16,
    "mae_vit_h14": MAE | H14,
    "finetune_mae_vit_b16": MAE_FINE_TUNING_B,
    "finetune_mae_vit_l16": MAE_FINE_TUNING | L16 | {"model.drop_path": 0.2},
    "finetune_mae_vit_h14": MAE_FINE_TUNING | H14 | {"model.drop_path": 0.3},
    "linear_mae_vit": MAE_LINEAR,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_config_loads_and_says_its_table_of_the_paper(name):
    loaded = load(given(name))
    file, _, word = name.partition(":")
    keys = words_of(CONFIGS / f"{file}.py").get(word, {})
    table = PAPER.get(name, PAPER.get(file, {}))
    expected = table | (keys if isinstance(keys, dict) else SIZES.get(word, {}))
    assert expected or (not file.startswith("aim") and "vit" not in name)
    for key, value in expected.items():
        assert operator.attrgetter(key)(loaded) == value, key


@pytest.mark.parametrize(
    "name",
    [
        "digits",
        "cifar10_transfer:linear",
        "darl_vit_l16_two_stream:random",
        "darl_vit_l8_64px_generation",
        "finetune_vit_l16_50ep:rope2d_384",
        "attentive_vit:b16",
        "attentive_aim:600m_lora",
        "attentive_aim:7b_best",
        "nepa_vit_l14:pretrain",
        "aim_600m:head_transformer",
        "aim_7b",
        "mae_vit_h14:800ep",
        "finetune_mae_vit_b16",
        "ardm_cifar10:upscale_4",
        "ardm_sc09:oa",
    ],
)
def test_model_of_a_config_can_be_traced(name):
    config = given(name)
    if "num_classes" in config.objective:
        config.objective.num_classes = 10
    method = load(config).method
    graph_definition(method.init)
    assert method.flops() > 0


@pytest.mark.parametrize("path", [path for path in FILES if words_of(path)], ids=lambda p: p.stem)
def test_unknown_word_is_refused_with_all_words(path):
    with pytest.raises(ValueError, match=f"no word 'other'.*one of {', '.join(words_of(path))}$"):
        from_file(f"{path}:other")


def test_key_that_is_left_to_the_user_is_named():
    with pytest.raises(ConfigError, match=r"config.init.checkpoint has no value: give --config\."):
        load(from_file(str(CONFIGS / "finetune_vit_b16.py")))


# --- errors --------------------------------------------------------------------------------------


def changed(changes: dict) -> ml_collections.ConfigDict:
    values = default_config().to_dict()
    for key, value in changes.items():
        *groups, last = key.split(".")
        node = values
        for group in groups:
            node = node[group]
        node[last] = value
    return ml_collections.ConfigDict(values)


PROBE = evaluator("linear_probe").to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.widht": 3}, "model.widht is no key; did you mean config.model.width?"),
        ({"modle": 3}, "modle is no key; did you mean config.model?"),
        ({"batch_size": "8"}, "batch_size='8' is a str; it must be a int"),
        ({"model.width": 2.5}, "model.width=2.5 is a float; it must be a int"),
        ({"data.flip": 1}, "data.flip=1 is a int; it must be a bool"),
        ({"data.crop_scale": (0.2,)}, "data.crop_scale=(0.2,) must have 2 entries"),
        ({"optimizer": 3}, "optimizer=3 must be a group of keys"),
        ({"objective.name": "jigsaw"}, "objective.name='jigsaw' is unknown; choose from ['mse', "),
        ({"model.positions": "rope"}, "model.positions='rope' is unknown"),
        ({"model.patch_size": 15}, "model.patch_size=15 must divide"),
        (
            {"model.order.name": "nested_raster", "model.order.block": 3},
            "model.order.block=3 must divide the grid of 14 x 14",
        ),
        (
            {"model.order.name": "random"},
            "model.order.name='random' needs config.objective.two_stream=True",
        ),
        (
            {"objective.two_stream": True, "model.positions": "rope1d"},
            "objective.two_stream=True asks for patches by their positions, which config.model.",
        ),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"total_epochs": None, "total_steps": 0}, "total_steps=0 must be at least 1"),
        ({"total_epochs": None}, "total_epochs or config.total_steps must have a value"),
        (
            {"optimizer.base_learning_rate": None},
            "optimizer.learning_rate or config.optimizer.base_learning_rate must have a value",
        ),
        (
            {"optimizer.warmup_epochs": None},
            "optimizer.warmup_steps or config.optimizer.warmup_epochs must have a value",
        ),
        # Evaluators, each with keys and data of its own.
        (
            {"evaluators.probe": PROBE | {"kind": "probing"}},
            "evaluators.probe.kind='probing' is unknown; choose from ['validation_loss', ",
        ),
        (
            {"evaluators.probe": PROBE | {"sedes": 2}},
            "evaluators.probe.sedes is no key; did you mean config.evaluators.probe.seeds?",
        ),
        (
            {"evaluators.probe": PROBE | {"data": data_config().to_dict() | {"image_size": "32"}}},
            "evaluators.probe.data.image_size='32' is a str",
        ),
    ],
)
def test_error_names_the_key_and_a_right_value(changes, message):
    with pytest.raises(ConfigError) as caught:
        load(changed(changes))
    assert str(caught.value).startswith(f"config.{message}")
    assert "\n" not in str(caught.value)


def test_missing_key_is_an_error():
    values = default_config()
    del values.data["flip"]
    with pytest.raises(ConfigError, match=r"config.data.flip is missing"):
        load(values)


# --- values --------------------------------------------------------------------------------------


def test_config_survives_the_round_trip_through_a_config_dict():
    config = default_config(objective="diffusion", size="L")
    config.evaluators.probe = evaluator("linear_probe", every_steps=7)
    config.evaluators.probe.data = data_config()
    config.evaluators.probe.data.dataset = "cifar10"
    loaded = load(config)
    assert loaded.model.width == 1024
    assert loaded.evaluators["probe"].data.dataset == "cifar10"
    assert load(to_config_dict(loaded)) == loaded


def test_whole_number_serves_as_a_float_and_a_key_without_a_value_keeps_its_type():
    assert load(changed({"total_epochs": 3})).total_epochs == 3.0
    config = default_config()
    config.total_epochs = None
    assert config.get_type("total_epochs") is float
    assert config.get_type("total_steps") is int


def test_nothing_is_put_on_a_device_by_loading_a_config():
    before = len(jax.live_arrays())
    load(default_config(objective="diffusion", size="H"))
    assert len(jax.live_arrays()) == before


# --- documentation -------------------------------------------------------------------------------


def flat(config: dict, prefix: str = ""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_documentation_has_every_key_with_a_default_and_whether_resuming_may_change_it():
    text = (CONFIGS.parent / "docs" / "config.md").read_text().split("## `evaluators`")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| (R?) ?\|", text, re.MULTILINE)
    defaults = {}
    others = (
        {"model": "ardm_transformer", "data": "text"},
        {"model": "ardm_diffwave", "data": "audio"},
    )
    groups = [{"objective": "ardm"} | other for other in others]
    for names in [*({"objective": objective} for objective in METHODS), *groups]:
        for optimizer in OPTIMIZERS:
            config = default_config(**names, optimizer=optimizer).to_dict()
            del config["evaluators"]
            for key, value in flat(config):
                defaults.setdefault(key, []).append(value)
    assert sorted(key for key, _, _ in rows) == sorted(defaults)
    for key, default, resumes in rows:
        assert eval(default) in defaults[key], key
        assert bool(resumes) == any(
            key == free or key.startswith(f"{free}.") for free in MAY_CHANGE_ON_RESUME
        ), key


def test_documentation_has_every_key_of_an_evaluator():
    text = (CONFIGS.parent / "docs" / "config.md").read_text().split("## `evaluators`")[1]
    rows = re.findall(r"^\| `(\w+)` \| `(.*)` \| ([\w, ]+) \|", text, re.MULTILINE)
    found = {}
    for key, default, kinds in rows:
        for kind in EVALUATORS if kinds == "all" else kinds.split(", "):
            found.setdefault(kind, {"kind": kind})[key] = eval(default)
    assert found == {kind: evaluator(kind).to_dict() for kind in EVALUATORS}
