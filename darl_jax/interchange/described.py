"""config.json of an export: the meaning of the arrays beside it.

    format, format_version   set of names and keys
    model                    the arguments of the PyTorch module's class (torch_module.py)
    class_names              names of the head's classes in order; null without names
    data                     size and standardization of images
    darl_jax_config          the whole config of the run
    step                     of the checkpoint

The formats are "darl_jax.vit" (safetensors under the names of names.py) and "darl_jax.timm" (a
folder for timm, whose keys stand beside these).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from darl_jax.interchange.names import ModelShape, has_classifier
from darl_jax.nn.orders import OrderConfig, fixed_order
from darl_jax.nn.vit import ViTConfig

VIT_FORMAT, TIMM_FORMAT = "darl_jax.vit", "darl_jax.timm"
ADAPTERS_FORMAT = "darl_jax.adapters"
FORMAT_VERSION = 2  # RoPE rotates halves of a head; version 1 rotated adjacent channels
CONFIG_FILE, ARRAYS_FILE = "config.json", "model.safetensors"

# Keys of config.model that determine the meaning of the arrays, and the values of those that older
# configs lack.
_FIRST_KEYS = tuple(
    "width depth num_heads mlp_dim patch_size positions rope_max_wavelength rope_y_first".split()
)
PLAIN_VIT: Mapping[str, Any] = {
    key: getattr(ViTConfig, key)
    for key in (
        "norm norm_epsilon mlp mlp_bias attention_bias qk_norm layer_scale patch_norm start_token"
    ).split()
}
MODEL_KEYS = (*_FIRST_KEYS, *PLAIN_VIT)


def model_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a run's `config.model` that determine the meaning of its arrays, and `order`.

    A backbone trained with a random order for each image is read in raster order.
    """
    model = dict(PLAIN_VIT)
    model |= {key: config["model"][key] for key in MODEL_KEYS if key in config["model"]}
    order = OrderConfig(**config["model"].get("order", {}))
    return model | {"order": OrderConfig() if order.name == "random" else order}


def trained_image_size(config: Mapping[str, Any]) -> int | None:
    """Rows and columns of the images on whose grid a run counts positions; None without images."""
    size = config["model"].get("trained_image_size") or config["data"].get("image_size")
    return None if size is None else int(size)


def describe(
    params: Mapping[str, Any], config: Mapping[str, Any], step: int | None = None
) -> dict[str, Any]:
    """The content of config.json for a run's parameters and config."""
    model, data, objective = model_of(config), config["data"], config.get("objective", {})
    size = trained_image_size(config)
    if size is None:
        raise ValueError(
            f"config.data.name={data['name']!r} has no images, and an export is of a ViT on images"
        )
    side = size // model["patch_size"]
    order = model.pop("order")
    head = params["head"] if has_classifier(params) else None
    model |= {
        "channels": data["channels"],
        "grid": [side, side],
        # The order in full, for readers that cannot compute it.
        "sequence": None if order.name == "raster" else fixed_order(order, (side, side)).tolist(),
        "num_classes": None if head is None else int(head["bias"].shape[-1]),
        # Pre-training is causal, and its features are averaged (Table 13).
        "pooling": None if head is None else objective.get("pooling", "mean"),
        "pooled_norm": "pooled_norm" in params,
        "mask": objective.get("mask", "causal"),
    }
    return {
        "format": VIT_FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model,
        # Names of the head's classes, in order.
        "class_names": list(objective.get("class_names", ())) or None if head else None,
        "data": {
            "image_size": data["image_size"],
            "mean": list(data["mean"]),
            "std": list(data["std"]),
        },
        "darl_jax_config": dict(config),
        "step": step,
    }


def shape_of(model: Mapping[str, Any]) -> ModelShape:
    """Sizes of the arrays that the group 'model' describes."""
    keys = {**PLAIN_VIT, **model}
    return ModelShape(
        width=model["width"],
        depth=model["depth"],
        mlp_dim=model["mlp_dim"],
        patch_size=model["patch_size"],
        channels=model["channels"],
        grid=(model["grid"][0], model["grid"][1]) if model["positions"] == "learnable" else None,
        num_classes=model["num_classes"],
        pooled_norm=model.get("pooled_norm", False),
        qk_channels=model["width"] // model["num_heads"] if keys["qk_norm"] == "scale" else None,
        layer_scale=bool(keys["layer_scale"]),
        start_token=keys["start_token"] == "learned",
        **{key: keys[key] for key in ("norm", "mlp", "mlp_bias", "attention_bias", "patch_norm")},
    )


def write_config(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes config.json."""
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """config.json of an export of format 'darl_jax.vit'; None where it is missing or foreign.

    Raises:
        ValueError: it is damaged, of another version, or part of an export for timm.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        form = config.get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it is not a JSON object ({error})") from error
    if form == TIMM_FORMAT:
        raise ValueError(
            f"{folder} is an export for timm, which cannot be imported; load its run, or an export "
            "with --format=safetensors"
        )
    if form != VIT_FORMAT:
        return None
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {config.get('format_version')}; this version of darl_jax "
            f"reads version {FORMAT_VERSION}"
        )
    for key in (*_FIRST_KEYS, "channels", "grid", "num_classes"):
        if key not in config.get("model", {}):
            raise ValueError(f"{path} has no key model.{key}; export the model again")
    if "darl_jax_config" not in config:
        raise ValueError(f"{path} has no key darl_jax_config; export the model again")
    return dict(config)
