"""Loads models from several kinds of files, recognized by their content."""

import argparse
import dataclasses
import importlib
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from darl_jax.interchange import described, foreign
from darl_jax.interchange.adapters import ARRAYS_FILE as ADAPTERS_FILE
from darl_jax.interchange.adapters import without_adapters
from darl_jax.interchange.names import Tensors, check_arrays, expected_shapes, from_torch, listed
from darl_jax.interchange.safetensors_files import read_safetensors, read_shapes
from darl_jax.nn.lora import is_adapter
from darl_jax.nn.vit import ViT, ViTConfig
from darl_jax.training.checkpoint import absolute_path, restore_params
from darl_jax.training.checkpoint.reading import FOLDER

_KINDS = (
    "a run's workdir or its folder of checkpoints, an exported folder, or a model of AIM, AIMv2, "
    "MAE or NEPA or a ViT of timm as .safetensors or as a PyTorch checkpoint (.pth, .pt, .bin)"
)
# Keys under which checkpoints keep the arrays, averaged ones first.
_STATE_DICTS = ("model_ema", "state_dict_ema", "model", "state_dict")
# What torch.load raises on damaged files, none of which it documents.
_DAMAGED = (
    *(RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError),
    *(AssertionError, struct.error, pickle.UnpicklingError),
)
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of a PyTorch file, since 1.6 and before


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Parameters from a file, and the known part of their config."""

    # Nested, of numpy arrays: backbone and, in some files, what else there is of the model.
    params: dict[str, Any]
    config: dict[str, Any] | None  # of the run; None for files of other frameworks
    model: dict[str, Any]  # known keys of config.model; MAE's and timm's files lack num_heads
    # Rows and columns of images on whose grid positions are counted; None where the file lacks it.
    trained_image_size: int | None
    description: str  # a phrase for messages
    step: int | None = None
    # Mean and std of the channels of images, where they are known.
    standardized: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def load_model(path: str, step: int | None = None) -> LoadedModel:
    """Loads the parameters in a file or folder.

    Args:
        path: a run's workdir or its folder of checkpoints (local or a bucket), an exported folder,
            or a model of AIM, AIMv2, MAE or NEPA or a ViT of timm as .safetensors or as a PyTorch
            checkpoint.
        step: one of a run's checkpoints; the newest if not given.

    Raises:
        FileNotFoundError: the path or the step does not exist.
        ValueError: the file is of an unknown kind, damaged, truncated, of another format version,
            has missing or extra arrays, or holds a model that ViT cannot represent.
        ImportError: the file is a PyTorch checkpoint and PyTorch is not installed.
    """
    if "://" in path or is_run(path):
        return load_run(path, step)
    given = pathlib.Path(path).expanduser()
    if not given.exists():
        raise FileNotFoundError(f"there is no file or folder {given}; readable are {_KINDS}")
    if step is not None:
        raise ValueError(f"step={step} is one of a run's checkpoints, and {given} is no run")
    folder = given if given.is_dir() else given.parent
    file = folder / described.ARRAYS_FILE if given.is_dir() else given
    if given.is_dir() and not file.is_file() and (folder / ADAPTERS_FILE).is_file():
        file = folder / ADAPTERS_FILE
    config = described.read_config(folder) if file.name == described.ARRAYS_FILE else None
    if config is not None:
        return _read_export(file, config)
    if not file.is_file():
        found = listed(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise ValueError(f"{folder} is no model: it holds {found}; readable are {_KINDS}")
    return _read_foreign(file)


def is_run(path: str) -> bool:
    """True for a local folder that has checkpoints, or is a folder of them."""
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        return False
    return (folder / FOLDER).is_dir() or any(entry.name.isdigit() for entry in folder.iterdir())


def load_run(path: str, step: int | None = None, *, averaged: bool = True) -> LoadedModel:
    """Loads the parameters of a run's checkpoint; arguments and errors as in `restore_params`."""
    params, config, found = restore_params(path, step, averaged=averaged)
    return LoadedModel(
        params=params,
        config=config,
        model=described.model_of(config),
        trained_image_size=described.trained_image_size(config),
        description=f"step {found} of {absolute_path(path)}",
        step=found,
        standardized=_standardized(config),
    )


def build_backbone(loaded: LoadedModel, *, image_size: int | None = None, **model: Any) -> ViT:
    """Builds the backbone, adapters merged, in float32 unless `dtype` is given.

    Args:
        loaded: the checkpoint.
        image_size: rows and columns of images; needed where the file lacks it, as of models that
            were trained on several sizes.
        **model: keys of ViTConfig: `num_heads` for MAE's and timm's files, which lack it, or
            replacements such as `dtype` and `attention`.

    Raises:
        ValueError: neither the file nor the arguments have the number of heads or the image size.
    """
    params, _ = without_adapters(loaded.params, loaded.config or {})
    keys = {"dtype": "float32"} | loaded.model | model
    if "num_heads" not in keys:
        raise ValueError(f"{loaded.description} lacks the number of heads: give num_heads")
    image_size = loaded.trained_image_size or image_size
    if image_size is None:
        raise ValueError(f"{loaded.description} lacks the size of its images: give image_size")
    config = ViTConfig(**keys)
    patch_dim = params["backbone"]["patch_embedding"]["kernel"].shape[0]
    side = image_size // config.patch_size

    def create() -> ViT:
        return ViT(config, patch_dim=patch_dim, grid=(side, side), rngs=nnx.Rngs(0))

    graphdef = nnx.split(nnx.eval_shape(create))[0]
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params["backbone"]))


def _read_export(file: pathlib.Path, config: Mapping[str, Any]) -> LoadedModel:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing beside its {described.CONFIG_FILE}; export the model again"
        )
    model = config["model"]
    check_arrays(str(file), read_shapes(file), expected_shapes(described.shape_of(model)))
    return LoadedModel(
        params=from_torch(read_safetensors(file)),
        config=config["darl_jax_config"],
        model=described.model_of(config["darl_jax_config"]),
        trained_image_size=model["grid"][0] * model["patch_size"],
        description=f"the export {file.parent} (step {config.get('step')})",
        step=config.get("step"),
        standardized=_standardized(config["darl_jax_config"]),
    )


def _standardized(
    config: Mapping[str, Any],
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    data = config.get("data", {})
    return (tuple(data["mean"]), tuple(data["std"])) if {"mean", "std"} <= data.keys() else None


def _read_foreign(file: pathlib.Path) -> LoadedModel:
    with open(file, "rb") as opened:
        start = opened.read(len(_ZIP))
    # The header first: its length may begin with a pickle's first byte.
    if file.suffix == ".safetensors" or _has_header(file):
        tensors = read_safetensors(file)
    elif start == _ZIP or start.startswith(_PICKLE):
        tensors = _read_torch(file, is_zip=start == _ZIP)
    else:
        raise ValueError(f"{file} is of an unknown kind; readable are {_KINDS}")
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    model = foreign.read(str(file), tensors)
    if model is None:
        if "patch_embedding.weight" in tensors:
            raise ValueError(
                f"{file} has the arrays of an export and no {described.CONFIG_FILE} beside it; put "
                f"both into one folder, as {described.ARRAYS_FILE} and {described.CONFIG_FILE}"
            )
        if any(is_adapter(tuple(name.split("/"))) for name in tensors):
            raise ValueError(
                f"{file} holds adapters without the backbone that they belong to; export their run "
                "with --format=safetensors, which merges them into it, and start from that"
            )
        raise ValueError(
            f"{file} has arrays such as {listed(sorted(tensors)) or 'none'}, which no known model "
            f"has; readable are {_KINDS}"
        )
    logging.info("%s", foreign.report(str(file), model))
    return LoadedModel(
        params=model.params,
        config=None,
        model=model.model,
        trained_image_size=model.image_size,
        description=f"{model.title} checkpoint {file}",
        standardized=model.standardized,
    )


def _has_header(file: pathlib.Path) -> bool:
    try:
        return bool(read_shapes(file))
    except ValueError:
        return False


def _read_torch(file: pathlib.Path, *, is_zip: bool) -> Tensors:
    """The arrays of a PyTorch checkpoint, as float32. Raises ImportError or ValueError."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"{file} is a PyTorch checkpoint, and reading it needs PyTorch, which is not installed "
            "(pip install torch); or save it as .safetensors where PyTorch is, which needs nothing"
        ) from error
    if is_zip and not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} is truncated: it begins like a PyTorch checkpoint, and the directory at its "
            "end is missing; copy it again"
        )
    try:
        # MAE's full checkpoints hold their arguments beside the arrays.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} cannot be read as a PyTorch checkpoint: {reason}") from error
    for key in _STATE_DICTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}, not arrays by name")
    return {
        name: np.asarray(value.detach().float().numpy())
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
