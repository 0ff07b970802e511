"""Files of AIM, AIMv2, MAE and NEPA: there and back, their outputs, and what is refused."""

import importlib.util
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax import config as config_lib
from darl_jax.interchange.exporting import Source, export
from darl_jax.interchange.loading import LoadedModel, build_backbone, load_model
from darl_jax.interchange.safetensors_files import read_safetensors, write_safetensors
from darl_jax.nn.patches import patchify
from darl_jax.nn.positions import sincos_2d
from tests.interchange.small_run import assert_same

D, HIDDEN, PATCH, SIDE, DECODER = 128, 24, 2, 4, 32
PATCHES = SIDE**2
SQUARE, VECTOR = (D, D), (D,)


def per_block(names: dict) -> dict:
    return {name.replace("#", str(i)): shape for i in range(2) for name, shape in names.items()}


def with_biases(weights: dict) -> dict:
    """The same names with a bias for each weight."""
    biases = {name.replace(".weight", ".bias"): shape[:1] for name, shape in weights.items()}
    return weights | biases


APPLE = {
    "preprocessor.patchifier.proj.weight": (D, 3, PATCH, PATCH),
    "preprocessor.patchifier.proj.bias": VECTOR,
    "preprocessor.patchifier.norm.weight": VECTOR,
    "trunk.post_trunk_norm.weight": VECTOR,
} | per_block(
    {
        "trunk.blocks.#.norm_1.weight": VECTOR,
        "trunk.blocks.#.attn.qkv.weight": (3 * D, D),
        "trunk.blocks.#.attn.proj.weight": SQUARE,
        "trunk.blocks.#.norm_2.weight": VECTOR,
        "trunk.blocks.#.mlp.fc1.weight": (HIDDEN, D),
        "trunk.blocks.#.mlp.fc2.weight": (D, HIDDEN),
    }
)
AIM = (
    APPLE
    | {
        "preprocessor.patchifier.norm.bias": VECTOR,
        "trunk.post_trunk_norm.bias": VECTOR,
    }
    | per_block({f"trunk.blocks.#.norm_{j}.bias": VECTOR for j in (1, 2)})
)
AIM_L3M = {name: shape for name, shape in AIM.items() if "qkv" not in name} | per_block(
    {f"trunk.blocks.#.attn.{each}_proj.weight": SQUARE for each in "qkv"}
)
NATIVE = APPLE | per_block({"trunk.blocks.#.mlp.fc3.weight": (HIDDEN, D)})
AIM_V2 = NATIVE | {"preprocessor.pos_embed": (1, PATCHES, D)}
AIM_V2_TIMM = {
    "patch_embed.proj.weight": (D, 3, PATCH, PATCH),
    "patch_embed.proj.bias": VECTOR,
    "patch_embed.norm.weight": VECTOR,
    "pos_embed": (1, PATCHES, D),
    "norm.weight": VECTOR,
} | per_block(
    {
        "blocks.#.norm1.weight": VECTOR,
        "blocks.#.attn.qkv.weight": (3 * D, D),
        "blocks.#.attn.proj.weight": SQUARE,
        "blocks.#.norm2.weight": VECTOR,
        "blocks.#.mlp.fc1_g.weight": (HIDDEN, D),
        "blocks.#.mlp.fc1_x.weight": (HIDDEN, D),
        "blocks.#.mlp.fc2.weight": (D, HIDDEN),
    }
)
_LAYER = "encoder.layers.#"
AIM_V2_TRANSFORMERS = {
    "embeddings.patch_embed.weight": (D, 3, PATCH, PATCH),
    "embeddings.patch_embed.bias": VECTOR,
    "embeddings.rms_norm.weight": VECTOR,
    "embeddings.position_embedding.weight": (PATCHES, D),
    "rms_norm.weight": VECTOR,
} | per_block(
    {f"{_LAYER}.attention.{each}_proj.weight": SQUARE for each in ("q", "k", "v", "out")}
    | {f"{_LAYER}.rms_norm{j}.weight": VECTOR for j in (1, 2)}
    | {f"{_LAYER}.ffn.{each}_proj.weight": (HIDDEN, D) for each in ("gate", "up")}
    | {f"{_LAYER}.ffn.down_proj.weight": (D, HIDDEN)}
)
# How the names above became those of today's transformers.
RENAMED = {
    "attention.proj_out": "attention.out_proj",
    "ffn.fc1": "ffn.gate_proj",
    "ffn.fc2": "ffn.down_proj",
    "ffn.fc3": "ffn.up_proj",
}
_LAYER = "vit_nepa.encoder.layer.#"
NEPA = (
    {"vit_nepa.embeddings.cls_token": (1, 1, D)}
    | with_biases(
        {
            "vit_nepa.embeddings.patch_embeddings.projection.weight": (D, 3, PATCH, PATCH),
            "vit_nepa.layernorm.weight": VECTOR,
        }
        | per_block(
            {
                f"{_LAYER}.attention.attention.{each}.weight": SQUARE
                for each in ("query", "key", "value")
            }
            | {
                f"{_LAYER}.attention.output.dense.weight": SQUARE,
                f"{_LAYER}.intermediate.up_proj.weight": (HIDDEN, D),
                f"{_LAYER}.output.dense.weight": (D, HIDDEN),
                f"{_LAYER}.layernorm_before.weight": VECTOR,
                f"{_LAYER}.layernorm_after.weight": VECTOR,
            }
        )
    )
    | per_block(
        {
            f"{_LAYER}.layer_scale.lambda1": VECTOR,
            f"{_LAYER}.output.layer_scale.lambda1": VECTOR,
        }
    )
)
NEPA_LARGE = NEPA | per_block(
    {f"{_LAYER}.attention.attention.{each}_norm.weight": (64,) for each in "qk"}
)


def mae_blocks(prefix: str, width: int, hidden: int) -> dict:
    return with_biases(
        per_block(
            {
                f"{prefix}.#.norm1.weight": (width,),
                f"{prefix}.#.attn.qkv.weight": (3 * width, width),
                f"{prefix}.#.attn.proj.weight": (width, width),
                f"{prefix}.#.norm2.weight": (width,),
                f"{prefix}.#.mlp.fc1.weight": (hidden, width),
                f"{prefix}.#.mlp.fc2.weight": (width, hidden),
            }
        )
    )


_MAE = (
    {"cls_token": (1, 1, D), "pos_embed": (1, 1 + PATCHES, D)}
    | with_biases({"patch_embed.proj.weight": (D, 3, PATCH, PATCH)})
    | mae_blocks("blocks", D, HIDDEN)
)
MAE = _MAE | with_biases({"norm.weight": VECTOR})
MAE_FULL = (
    MAE
    | {"mask_token": (1, 1, DECODER), "decoder_pos_embed": (1, 1 + PATCHES, DECODER)}
    | with_biases(
        {
            "decoder_embed.weight": (DECODER, D),
            "decoder_norm.weight": (DECODER,),
            "decoder_pred.weight": (PATCH**2 * 3, DECODER),
        }
    )
    | mae_blocks("decoder_blocks", DECODER, 20)
)
MAE_FINE_TUNED = _MAE | with_biases({"fc_norm.weight": VECTOR, "head.weight": (5, D)})


def fixed(width: int, *, start: bool) -> np.ndarray:
    table = sincos_2d((SIDE, SIDE), (SIDE, SIDE), width)
    return np.concatenate([np.zeros((int(start), width), np.float32), table])[None]


def arrays(shapes: dict, seed: int = 0) -> dict:
    """Random arrays; those that are never trained are what they are."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5
        made[name] = (scale * rng.normal(size=shape)).astype(np.float32)
        if "norm" in name and name.endswith("weight"):
            made[name] += 1
    if "decoder_pos_embed" in made:
        made["pos_embed"] = fixed(D, start=True)
        made["decoder_pos_embed"] = fixed(DECODER, start=True)
    elif "fc_norm.weight" in made:  # trained in fine-tuning, and no part of the class token
        made["pos_embed"][:, 0] = 0
    elif "cls_token" in made:
        made["pos_embed"] = fixed(D, start=True)
    return made


def aim_l3m() -> dict:
    return arrays(AIM_L3M) | {"preprocessor.pos_embed": fixed(D, start=False)}


def saved(path, tensors: dict) -> str:
    write_safetensors(path, tensors, {})
    return str(path)


def as_source(loaded: LoadedModel) -> Source:
    """A run with the parameters and the config of an imported file."""
    config = config_lib.default_config(size="Ti", objective="classification")
    config.objective.num_classes = 5
    config.objective.pooling = "mean"
    with config.unlocked():
        heads = {"num_heads": loaded.model.get("num_heads", 2), "dtype": "float32"}
        config.model.update(loaded.model | heads)
    config.data.image_size = loaded.trained_image_size or SIDE * PATCH
    config.data.source = "digits"
    saved_config = json.loads(json.dumps(config_lib.to_dict(config_lib.load(config))))
    return Source(loaded.params, saved_config, 3, "an imported file")


CASES = {
    "aim": ("aim", lambda: arrays(AIM)),
    "aim-l3m": ("aim-l3m", aim_l3m),
    "aimv2": ("aimv2", lambda: arrays(AIM_V2)),
    "aimv2, native": ("aimv2", lambda: arrays(NATIVE)),
    "aimv2-timm": ("aimv2-timm", lambda: arrays(AIM_V2_TIMM)),
    "aimv2-transformers": ("aimv2-transformers", lambda: arrays(AIM_V2_TRANSFORMERS)),
    "mae": ("mae", lambda: arrays(MAE)),
    "mae, with its decoder": ("mae", lambda: arrays(MAE_FULL)),
    "mae, fine-tuned": ("mae", lambda: arrays(MAE_FINE_TUNED)),
    "nepa": ("nepa", lambda: arrays(NEPA)),
    "nepa, large": ("nepa", lambda: arrays(NEPA_LARGE)),
}


@pytest.mark.parametrize("case", CASES)
def test_import_export_import_keeps_every_bit(tmp_path, case):
    form, make = CASES[case]
    tensors = make()
    loaded = load_model(saved(tmp_path / "theirs.safetensors", tensors))
    result = export(as_source(loaded), form, tmp_path / "exported")
    assert result.dropped == ""
    again = load_model(str(tmp_path / "exported"))
    assert_same(again.params, loaded.params)
    assert (again.model, again.trained_image_size) == (loaded.model, loaded.trained_image_size)
    written = read_safetensors(tmp_path / "exported" / "model.safetensors")
    theirs = {name.removeprefix("vit_nepa."): value for name, value in tensors.items()}
    assert written.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_each_projects_names_of_the_same_numbers_are_the_same_model(tmp_path):
    """Told by the numbers: arrays of each table are made in the order of their meaning."""
    apple = arrays(AIM_V2)
    timm, transformers = {}, {}
    for name, value in apple.items():
        timm[
            name.removeprefix("preprocessor.")
            .replace("patchifier", "patch_embed")
            .replace("trunk.post_trunk_norm", "norm")
            .replace("trunk.", "")
            .replace("norm_", "norm")
            .replace("fc1", "fc1_g")
            .replace("fc3", "fc1_x")
        ] = value
        if name == "preprocessor.pos_embed":
            transformers["embeddings.position_embedding.weight"] = value[0]
        elif "qkv" in name:
            for each, part in zip("qkv", np.split(value, 3), strict=True):
                key = f"encoder.layers.{name.split('.')[2]}.attention.{each}_proj.weight"
                transformers[key] = np.ascontiguousarray(part)
        else:
            transformers[
                name.replace("preprocessor.patchifier.proj", "embeddings.patch_embed")
                .replace("preprocessor.patchifier.norm", "embeddings.rms_norm")
                .replace("trunk.post_trunk_norm", "rms_norm")
                .replace("trunk.blocks", "encoder.layers")
                .replace("norm_", "rms_norm")
                .replace("attn.proj", "attention.out_proj")
                .replace("mlp.fc1", "ffn.gate_proj")
                .replace("mlp.fc3", "ffn.up_proj")
                .replace("mlp.fc2", "ffn.down_proj")
            ] = value
    old = {}
    for name, value in transformers.items():
        for before, now in RENAMED.items():
            name = name.replace(now, before)
        old[name] = value
    assert timm.keys() == AIM_V2_TIMM.keys()
    assert transformers.keys() == AIM_V2_TRANSFORMERS.keys()
    lit = {f"image_encoder.{name}": value for name, value in apple.items()}
    lit |= {"image_encoder.head.k.weight": np.ones(SQUARE, np.float32)}
    lit |= {"text_encoder.trunk.blocks.0.norm_1.weight": np.ones(3, np.float32)}
    lit |= {"log_logit_scale": np.ones((), np.float32)}
    expected = load_model(saved(tmp_path / "apple.safetensors", apple))
    files = {"timm": timm, "transformers": transformers, "old": old, "lit": lit}
    for kind, tensors in files.items():
        found = load_model(saved(tmp_path / f"{kind}.safetensors", tensors))
        assert_same(found.params, expected.params)
        assert found.model == expected.model


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: arrays(AIM),
            "f is AIM (names of ml-aim): width=128, depth=2, num_heads=1, mlp_dim=24, "
            "patch_size=2, positions=sincos2d, images of any size; they are standardized by mean "
            "(0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225); ImageNet's; resized to 256 on "
            "the short side (bicubic), of which the center 224 is read",
        ),
        (
            lambda: (
                {f"image_encoder.{n}": x for n, x in arrays(AIM_V2).items()}
                | {"text_encoder.a": np.ones(3), "text_encoder.b": np.ones(3)}
            ),
            "f is AIMv2 (names of ml-aim): width=128, depth=2, num_heads=1, mlp_dim=24, "
            "patch_size=2, positions=learnable, images of 8 pixels; they are standardized by mean "
            "(0.48145466, 0.4578275, 0.40821073) and std (0.26862954, 0.26130258, 0.27577711); "
            "CLIP's, as Apple's preprocessor_config.json and timm have it, where ml-aim's own "
            "transform has ImageNet's; resized on the short side (bicubic) to what is read; "
            "left out arrays: text_encoder (2)",
        ),
        (
            lambda: arrays(NEPA),
            "f is NEPA: width=128, depth=2, num_heads=2, mlp_dim=24, patch_size=2, "
            "positions=rope_dinov3, images of any size; they are standardized by mean "
            "(0.5, 0.5, 0.5) and std (0.5, 0.5, 0.5); attention is causal in pre-training and full "
            "in fine-tuning",
        ),
    ],
)
def test_the_log_tells_the_family_and_the_images(tmp_path, caplog, make, expected):
    path = tmp_path / "f.safetensors"
    tensors = {name: x.astype(np.float32) for name, x in make().items()}
    with caplog.at_level(logging.INFO, logger="absl"):
        load_model(saved(path, tensors))
    assert expected in caplog.text.replace(f"{path} is", "f is")


def wide(tensors: dict, depth: int) -> dict:
    """The same arrays as if they were of 768 channels, without room for that."""
    nothing = np.zeros((), np.float32)
    blocks = {f"trunk.blocks.{i}.norm_1.weight": np.zeros(768, np.float32) for i in range(depth)}
    return (
        tensors
        | blocks
        | {
            "preprocessor.patchifier.proj.weight": np.broadcast_to(nothing, (768, 3, 14, 14)),
            "trunk.blocks.0.mlp.fc3.weight": np.broadcast_to(nothing, (2048, 768)),
        }
    )


def without(shapes: dict, name: str) -> dict:
    return {key: value for key, value in arrays(shapes).items() if key != name}


def changed(shapes: dict, **new) -> dict:
    replaced = {name.replace("__", "."): np.ones(shape, np.float32) for name, shape in new.items()}
    return arrays(shapes) | replaced


REFUSED = [
    (
        lambda: wide(arrays(NATIVE), 12),
        "f has the sizes of AIMv2 (names of ml-aim) base (width 768, 12 blocks), of which no "
        "checkpoint was published; it is another model's",
    ),
    (
        lambda: without(AIM_V2, "trunk.blocks.1.mlp.fc3.weight"),
        "f has no array trunk.blocks.1.mlp.fc3.weight; a model of AIMv2 (names of ml-aim) needs "
        "all of its 19 arrays",
    ),
    (
        lambda: without(AIM, "trunk.blocks.0.norm_1.bias"),
        "f has no array trunk.blocks.0.norm_1.bias; a model of AIM (names of ml-aim) needs all of "
        "its 22 arrays",
    ),
    (
        lambda: arrays(AIM_L3M),
        "f has no array preprocessor.pos_embed, which all models of its kind have",
    ),
    (
        lambda: aim_l3m() | {"preprocessor.pos_embed": np.ones((1, PATCHES, D), np.float32)},
        "f has a preprocessor.pos_embed that is not the sine-cosine one, which AIM (names of "
        "ml-l3m) never trains",
    ),
    (  # fc3 is the value here, and the projection back elsewhere
        lambda: changed(
            AIM_V2,
            trunk__blocks__0__mlp__fc3__weight=(D, HIDDEN),
            trunk__blocks__0__mlp__fc2__weight=(HIDDEN, D),
        ),
        "f does not fit AIMv2 (names of ml-aim): it has trunk.blocks.0.mlp.fc1.weight of shape "
        "(24, 128) instead of (128, 128), trunk.blocks.1.mlp.fc1.weight of shape (24, 128) instead "
        "of (128, 128), trunk.blocks.0.mlp.fc3.weight of shape (128, 24) instead of (128, 128), "
        "trunk.blocks.1.mlp.fc3.weight of shape (24, 128) instead of (128, 128), "
        "trunk.blocks.0.mlp.fc2.weight of shape (24, 128) instead of (128, 128) and 1 more",
    ),
    (
        lambda: changed(AIM_V2, trunk__blocks__1__mlp__fc1__weight=(D, HIDDEN)),
        "f does not fit AIMv2 (names of ml-aim): it has trunk.blocks.1.mlp.fc1.weight of shape "
        "(128, 24) instead of (24, 128)",
    ),
    (
        lambda: changed(AIM, trunk__blocks__1__attn__qkv__bias=(3 * D,)),
        "f has trunk.blocks.1.attn.qkv.bias, which a model of AIM (names of ml-aim) does not have; "
        "it may be the file of another model",
    ),
    (
        lambda: changed(AIM_V2, preprocessor__pos_embed=(1, 8, D)),
        "f has 8 positions, which fit no square grid",
    ),
    (
        lambda: without(MAE_FULL, "decoder_blocks.1.mlp.fc2.bias"),
        "f has no array decoder_blocks.1.mlp.fc2.bias; a model of MAE's decoder needs all of its "
        "32 arrays",
    ),
    (
        lambda: arrays(MAE_FULL) | {"decoder_pos_embed": fixed(DECODER, start=True) * 0.5},
        "f has a decoder_pos_embed that is not the sine-cosine one, which MAE never trains",
    ),
    (
        lambda: (
            arrays(MAE_FINE_TUNED)
            | {f"norm.{k}": np.ones(D, np.float32) for k in ("weight", "bias")}
        ),
        "f has norm.weight and fc_norm.weight, norms before and after pooling, of which darl_jax's "
        "classifier has one",
    ),
    (
        lambda: {"stages.0.conv.weight": np.ones((2, 2), np.float32)},
        "f has arrays such as stages.0.conv.weight, which no known model has; readable are a run's "
        "workdir or its folder of checkpoints, an exported folder, or a model of AIM, AIMv2, MAE "
        "or NEPA or a ViT of timm as .safetensors or as a PyTorch checkpoint (.pth, .pt, .bin)",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, make, message):
    path = tmp_path / "f.safetensors"
    tensors = {name: np.ascontiguousarray(value) for name, value in make().items()}
    with pytest.raises(ValueError) as error:
        load_model(saved(path, tensors))
    assert str(error.value).replace(str(path), "f") == message


@pytest.mark.parametrize(
    ("form", "make", "keys", "message"),
    [
        (
            "aimv2",
            lambda: arrays(AIM),
            {},
            "--format=aimv2: config.model.norm='layer', where this format has 'rms'; "
            "--format=safetensors keeps it",
        ),
        (
            "aim",
            lambda: arrays(AIM),
            {"num_heads": 2},
            "--format=aim: config.model.num_heads=2, and AIM (names of ml-aim) has heads of 128 "
            "channels; --format=safetensors keeps it",
        ),
        (
            "mae",
            lambda: arrays(NEPA),
            {},
            "--format=mae: config.model.norm_epsilon=1e-12, where this format has 1e-06; "
            "--format=safetensors keeps it",
        ),
        (
            "mae",
            lambda: arrays(MAE),
            {"order": {"name": "spiral"}},
            "--format=mae: config.model.order.name is not 'raster', which this format has; "
            "--format=safetensors keeps it",
        ),
    ],
)
def test_a_backbone_of_another_family_is_not_exported(tmp_path, form, make, keys, message):
    source = as_source(load_model(saved(tmp_path / "f.safetensors", make())))
    source.config["model"].update(keys)
    with pytest.raises(ValueError) as error:
        export(source, form, tmp_path / "exported")
    assert str(error.value) == message
    assert not (tmp_path / "exported").exists()


def test_a_native_model_needs_the_size_of_images(tmp_path):
    path = saved(tmp_path / "native.safetensors", arrays(NATIVE))
    with pytest.raises(ValueError) as error:
        build_backbone(load_model(path))
    assert str(error.value) == (
        f"AIMv2 (names of ml-aim) checkpoint {path} lacks the size of its images: give image_size"
    )


# Forward passes in float64 under the projects' own names, from the papers and the table of names.


def layer_norm(torch, t, name, x, epsilon):
    return torch.nn.functional.layer_norm(
        x, x.shape[-1:], t[f"{name}.weight"], t.get(f"{name}.bias"), epsilon
    )


def rms_norm(torch, t, name, x, epsilon):
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * t[f"{name}.weight"]


def attend(torch, q, k, v, heads):
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def apple_forward(torch, t, images, norm, epsilon, table):
    """AIM or AIMv2 under ml-aim's names."""
    proj = "preprocessor.patchifier.proj"
    x = torch.nn.functional.conv2d(images, t[f"{proj}.weight"], t[f"{proj}.bias"], stride=PATCH)
    x = norm(torch, t, "preprocessor.patchifier.norm", x.flatten(2).transpose(1, 2), epsilon)
    x = x + table
    for block in ("trunk.blocks.0", "trunk.blocks.1"):
        y = norm(torch, t, f"{block}.norm_1", x, epsilon)
        qkv = (y @ t[f"{block}.attn.qkv.weight"].T).chunk(3, -1)
        x = x + attend(torch, *qkv, 1) @ t[f"{block}.attn.proj.weight"].T
        y = norm(torch, t, f"{block}.norm_2", x, epsilon)
        hidden = y @ t[f"{block}.mlp.fc1.weight"].T
        if f"{block}.mlp.fc3.weight" in t:
            hidden = torch.nn.functional.silu(hidden) * (y @ t[f"{block}.mlp.fc3.weight"].T)
        else:
            hidden = torch.nn.functional.gelu(hidden)
        x = x + hidden @ t[f"{block}.mlp.fc2.weight"].T
    return norm(torch, t, "trunk.post_trunk_norm", x, epsilon)


def table_of(grid):
    """[sin x, cos x, sin y, cos y] with x the column."""
    rows, columns = grid
    rate = 10_000.0 ** (-np.arange(D // 4) / (D / 4))
    y, x = np.divmod(np.arange(rows * columns), columns)
    waves = [wave(np.outer(axis, rate)) for axis in (x, y) for wave in (np.sin, np.cos)]
    return np.concatenate(waves, 1)


def nepa_forward(torch, t, images):
    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    grid = images.shape[-2] // PATCH, images.shape[-1] // PATCH
    y, x_ = np.meshgrid(*((2 * (np.arange(n) + 0.5) / n - 1) for n in grid), indexing="ij")
    rates = 100.0 ** (-4 * np.arange(16) / 64)
    angles = 2 * np.pi * np.stack([y.ravel(), x_.ravel()], 1)[:, :, None] * rates
    angles = torch.tensor(np.tile(angles.reshape(len(angles), -1), 2))

    def turned(each):
        each = each.unflatten(-1, (2, 64))
        each = torch.nn.functional.layer_norm(each, (64,), eps=1e-12) * scale[0]
        patches = each[:, 1:].transpose(1, 2)
        half = torch.cat([-patches[..., 32:], patches[..., :32]], -1)
        rotated = patches * angles.cos() + half * angles.sin()
        return torch.cat([each[:, :1], rotated.transpose(1, 2)], 1).flatten(2)

    name = "vit_nepa.embeddings.patch_embeddings.projection"
    weights = t[f"{name}.weight"], t[f"{name}.bias"]
    x = torch.nn.functional.conv2d(images, *weights, stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([t["vit_nepa.embeddings.cls_token"].expand(len(x), 1, -1), x], 1)
    for layer in ("vit_nepa.encoder.layer.0", "vit_nepa.encoder.layer.1"):
        attention = f"{layer}.attention.attention"
        y = layer_norm(torch, t, f"{layer}.layernorm_before", x, 1e-12)
        scale = [t[f"{attention}.q_norm.weight"]]
        q = turned(dense(f"{attention}.query", y))
        scale = [t[f"{attention}.k_norm.weight"]]
        k = turned(dense(f"{attention}.key", y))
        y = attend(torch, q, k, dense(f"{attention}.value", y), 2)
        x = x + dense(f"{layer}.attention.output.dense", y) * t[f"{layer}.layer_scale.lambda1"]
        y = layer_norm(torch, t, f"{layer}.layernorm_after", x, 1e-12)
        y = torch.nn.functional.gelu(dense(f"{layer}.intermediate.up_proj", y))
        y = dense(f"{layer}.output.dense", y) * t[f"{layer}.output.layer_scale.lambda1"]
        x = x + y
    return layer_norm(torch, t, "vit_nepa.layernorm", x, 1e-12)


@pytest.mark.parametrize(
    ("shapes", "grid"),
    [(AIM, (SIDE, SIDE)), (AIM_V2, (SIDE, SIDE)), (NATIVE, (3, 5)), (NEPA_LARGE, (3, 5))],
    ids=["aim", "aimv2", "native", "nepa"],
)
def test_an_imported_backbone_computes_in_float64_what_its_project_computes(tmp_path, shapes, grid):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = arrays(shapes)
    images = np.random.default_rng(1).normal(size=(2, grid[0] * PATCH, grid[1] * PATCH, 3))
    t = {name: torch.tensor(value).double() for name, value in tensors.items()}
    theirs = torch.tensor(images).permute(0, 3, 1, 2)
    if shapes is NEPA_LARGE:
        expected = nepa_forward(torch, t, theirs)
    else:
        table = t.get("preprocessor.pos_embed", torch.tensor(table_of(grid)))
        norm, epsilon = (layer_norm, 1e-6) if shapes is AIM else (rms_norm, 1e-5)
        expected = apple_forward(torch, t, theirs, norm, epsilon, table)
    loaded = load_model(saved(tmp_path / "f.safetensors", tensors))
    with jax.enable_x64(True):
        backbone = build_backbone(loaded, dtype="float64", image_size=SIDE * PATCH)
        found = backbone(patchify(jnp.asarray(images), PATCH), mask="full", grid=grid).tokens
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-11)


def test_a_fine_tuned_mae_has_its_logits_in_the_exported_module(tmp_path):
    """The mean of the patches is normed, and the class token is read by nobody."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    tensors = arrays(MAE_FINE_TUNED)
    loaded = load_model(saved(tmp_path / "f.safetensors", tensors))
    export(as_source(loaded), "safetensors", tmp_path / "exported")
    assert_same(load_model(str(tmp_path / "exported")).params, loaded.params)
    spec = importlib.util.spec_from_file_location("fine", tmp_path / "exported" / "darl_vit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images = torch.tensor(np.random.default_rng(1).normal(size=(2, 3, SIDE * PATCH, SIDE * PATCH)))
    t = {name: torch.tensor(value).double() for name, value in tensors.items()}

    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    proj = t["patch_embed.proj.weight"], t["patch_embed.proj.bias"]
    x = torch.nn.functional.conv2d(images, *proj, stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([t["cls_token"].expand(2, 1, D), x], 1) + t["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        y = layer_norm(torch, t, f"{block}.norm1", x, 1e-6)
        y = attend(torch, *dense(f"{block}.attn.qkv", y).chunk(3, -1), 2)
        x = x + dense(f"{block}.attn.proj", y)
        y = layer_norm(torch, t, f"{block}.norm2", x, 1e-6)
        y = torch.nn.functional.gelu(dense(f"{block}.mlp.fc1", y))
        x = x + dense(f"{block}.mlp.fc2", y)
    expected = dense("head", layer_norm(torch, t, "fc_norm", x[:, 1:].mean(1), 1e-6))
    with torch.no_grad():
        found = module.load(tmp_path / "exported").double().logits(images)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-11)


def test_a_damaged_pickle_is_one_line(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / "f.pth"
    tensors = {name: torch.tensor(value) for name, value in arrays(AIM).items()}
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert load_model(str(path)).model["width"] == D
    rng, messages = np.random.default_rng(0), []
    for _ in range(40):
        damaged = bytearray(whole)
        for at in rng.integers(0, 600, 3):  # names and shapes
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            load_model(str(path))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(path) in each and "\n" not in each for each in messages)
