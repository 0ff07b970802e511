"""config.json of an export: what the arrays beside it mean.

    format, format_version   which names and keys there are
    model                    the arguments of the PyTorch module's class (torch_module.py)
    data                     how images are standardized, and their size
    darl_jax_config          the whole config of the run
    step                     of the checkpoint

The formats are "darl_jax.vit" (safetensors under the names of names.py) and "darl_jax.timm" (a
folder for timm, whose keys stand beside these).
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from darl_jax.interchange.names import ModelShape
from darl_jax.nn.orders import OrderConfig, fixed_order

VIT_FORMAT, TIMM_FORMAT = "darl_jax.vit", "darl_jax.timm"
FORMAT_VERSION = 2  # RoPE rotates halves of a head; version 1 rotated adjacent channels
CONFIG_FILE, ARRAYS_FILE = "config.json", "model.safetensors"

# Keys of config.model that decide what the arrays mean.
MODEL_KEYS = (
    "width",
    "depth",
    "num_heads",
    "mlp_dim",
    "patch_size",
    "positions",
    "rope_max_wavelength",
    "rope_y_first",
)


def model_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a run's `config.model` that decide what its arrays mean, and `order`.

    A backbone that was trained with an order of each image's own is read in raster order.
    """
    model = {key: config["model"][key] for key in MODEL_KEYS if key in config["model"]}
    order = OrderConfig(**config["model"].get("order", {}))
    return model | {"order": OrderConfig() if order.name == "random" else order}


def trained_image_size(config: Mapping[str, Any]) -> int:
    """Rows and columns of the images that a run counts positions on."""
    return int(config["model"].get("trained_image_size") or config["data"]["image_size"])


def describe(
    params: Mapping[str, Any], config: Mapping[str, Any], step: int | None = None
) -> dict[str, Any]:
    """The content of config.json for a run's parameters and config."""
    model, data, objective = model_of(config), config["data"], config.get("objective", {})
    side = trained_image_size(config) // model["patch_size"]
    order = model.pop("order")
    sequence = fixed_order(order, (side, side)).tolist()
    head = params.get("head")
    model |= {
        "channels": data["channels"],
        "grid": [side, side],
        # The order spelled out, for whoever cannot compute it.
        "sequence": None if order.name == "raster" else sequence,
        "num_classes": None if head is None else int(head["bias"].shape[-1]),
        # Pre-training is causal, and its features are read by the mean (Table 13).
        "pooling": None if head is None else objective.get("pooling", "mean"),
        "mask": objective.get("mask", "causal"),
    }
    return {
        "format": VIT_FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model,
        "data": {
            "image_size": data["image_size"],
            "mean": list(data["mean"]),
            "std": list(data["std"]),
        },
        "darl_jax_config": dict(config),
        "step": step,
    }


def shape_of(model: Mapping[str, Any]) -> ModelShape:
    """Which arrays the group 'model' asks for."""
    return ModelShape(
        width=model["width"],
        depth=model["depth"],
        mlp_dim=model["mlp_dim"],
        patch_size=model["patch_size"],
        channels=model["channels"],
        grid=(model["grid"][0], model["grid"][1]) if model["positions"] == "learnable" else None,
        num_classes=model["num_classes"],
    )


def write_config(folder: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes config.json."""
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """config.json of an export of format 'darl_jax.vit'; None where it is missing or foreign.

    Raises:
        ValueError: it is damaged, of another version, or one of an export for timm.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        form = config.get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON with keys ({error})") from error
    if form == TIMM_FORMAT:
        raise ValueError(
            f"{folder} is an export for timm, which is not read back; load the run that it is "
            "from, or its export with --format=safetensors"
        )
    if form != VIT_FORMAT:
        return None
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {config.get('format_version')}; this version of darl_jax "
            f"reads version {FORMAT_VERSION}"
        )
    missing = [
        f"model.{key}"
        for key in (*MODEL_KEYS, "channels", "grid", "num_classes")
        if key not in config.get("model", {})
    ]
    missing += ["darl_jax_config"] if "darl_jax_config" not in config else []
    if missing:
        raise ValueError(f"{path} has no key {missing[0]}; export the model again")
    return dict(config)
