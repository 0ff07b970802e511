"""Models from files of several kinds, told apart by their content."""

import dataclasses
import importlib
import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx

from darl_jax.interchange import class_token_vit, described
from darl_jax.interchange.names import Tensors, check_arrays, expected_shapes, from_torch, listed
from darl_jax.interchange.safetensors_files import read_header, read_safetensors
from darl_jax.nn.vit import ViT, ViTConfig
from darl_jax.training.checkpoint import absolute_path, restore_params
from darl_jax.training.checkpoint.reading import FOLDER

_KINDS = (
    "a run's workdir or its folder of checkpoints, an exported folder, or a ViT of MAE or timm as "
    ".safetensors or as a PyTorch checkpoint (.pth, .pt, .bin)"
)
# Under which keys checkpoints keep the arrays, the average of them first.
_STATE_DICTS = ("model_ema", "state_dict_ema", "model", "state_dict")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how a PyTorch file begins, since 1.6 and before


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """Parameters from a file, and what is known of them.

    Attributes:
        params: nested dicts of numpy arrays: "backbone" and, where the file has them,
            "patch_decoder", "query_stream" and "head".
        config: of the run that made it, as checkpoints keep it; None where there was none.
        model: what is known of `config.model`; MAE's and timm's files do not say the number of
            heads.
        trained_image_size: rows and columns of the images that positions are counted on, where
            that is known.
        description: one phrase for messages.
        step: of the run, where that is known.
    """

    params: dict[str, Any]
    config: dict[str, Any] | None
    model: dict[str, Any]
    trained_image_size: int | None
    description: str
    step: int | None = None


def load_model(path: str, step: int | None = None) -> LoadedModel:
    """The parameters in a file or folder.

    Args:
        path: a run's workdir or its folder of checkpoints (local or a bucket), a folder that
            export.py wrote, or a ViT of MAE's or timm's as .safetensors or PyTorch checkpoint.
        step: of a run's checkpoints; the newest if not given.

    Raises:
        FileNotFoundError: there is nothing there, or no such step.
        ValueError: the file is of no known kind, damaged, truncated, of another format version, has
            too few or too many arrays, or is of a model that ours cannot compute.
        ImportError: a PyTorch checkpoint, and PyTorch is not installed.
    """
    if "://" in path or is_run(path):
        return load_run(path, step)
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"there is no file or folder {place}; what can be read is {_KINDS}")
    if step is not None:
        raise ValueError(f"step={step} is one of a run's checkpoints, and {place} is no run")
    folder = place if place.is_dir() else place.parent
    file = folder / described.ARRAYS_FILE if place.is_dir() else place
    config = described.read_config(folder) if file.name == described.ARRAYS_FILE else None
    if config is not None:
        return _read_export(file, config)
    if not file.is_file():
        found = listed(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise ValueError(f"{folder} is no model: it holds {found}; what can be read is {_KINDS}")
    return _read_foreign(file)


def is_run(path: str) -> bool:
    """Whether a local folder has checkpoints, or is a folder of them."""
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
        return False
    return (folder / FOLDER).is_dir() or any(entry.name.isdigit() for entry in folder.iterdir())


def load_run(path: str, step: int | None = None, *, averaged: bool = True) -> LoadedModel:
    """The parameters of a run's checkpoint; arguments and errors are those of `restore_params`."""
    params, config, found = restore_params(path, step, averaged=averaged)
    return LoadedModel(
        params=params,
        config=config,
        model=described.model_of(config),
        trained_image_size=described.trained_image_size(config),
        description=f"step {found} of {absolute_path(path)}",
        step=found,
    )


def build_backbone(loaded: LoadedModel, **model: Any) -> ViT:
    """The backbone with its parameters, in float32 unless `dtype` says otherwise.

    Args:
        loaded: from `load_model`.
        **model: keys of ViTConfig that are not in the file (`num_heads` of MAE's and timm's) or
            that are to be otherwise (`dtype`, `attention`).

    Raises:
        ValueError: the file does not say the number of heads, and neither do the arguments.
    """
    keys = {"dtype": "float32"} | loaded.model | model
    if "num_heads" not in keys:
        raise ValueError(f"{loaded.description} does not say how many heads it has: give num_heads")
    config = ViTConfig(**keys)
    patch_dim = loaded.params["backbone"]["patch_embedding"]["kernel"].shape[0]
    side = (loaded.trained_image_size or config.patch_size) // config.patch_size

    def create() -> ViT:
        return ViT(config, patch_dim=patch_dim, grid=(side, side), rngs=nnx.Rngs(0))

    graphdef = nnx.split(nnx.eval_shape(create))[0]
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, loaded.params["backbone"]))


def _read_export(file: pathlib.Path, config: Mapping[str, Any]) -> LoadedModel:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing beside its {described.CONFIG_FILE}; export the model again"
        )
    model = config["model"]
    found = {name: tuple(entry["shape"]) for name, entry in read_header(file).items()}
    check_arrays(str(file), found, expected_shapes(described.shape_of(model)))
    return LoadedModel(
        params=from_torch(read_safetensors(file)),
        config=config["darl_jax_config"],
        model=described.model_of(config["darl_jax_config"]),
        trained_image_size=model["grid"][0] * model["patch_size"],
        description=f"the export {file.parent} (step {config.get('step')})",
        step=config.get("step"),
    )


def _read_foreign(file: pathlib.Path) -> LoadedModel:
    with open(file, "rb") as opened:
        start = opened.read(4)
    # By its header first: its length may begin with the byte that a pickle begins with.
    if file.suffix == ".safetensors" or _has_header(file):
        tensors = read_safetensors(file)
    elif start == _ZIP or start.startswith(_PICKLE):
        tensors = _read_torch(file)
    else:
        raise ValueError(f"{file} is of no known kind; what can be read is {_KINDS}")
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if not class_token_vit.looks_like(tensors):
        if "patch_embedding.weight" in tensors:
            raise ValueError(
                f"{file} has the arrays of an export, and there is no {described.CONFIG_FILE} of "
                f"one beside it; put both into one folder, as {described.ARRAYS_FILE} and "
                f"{described.CONFIG_FILE}"
            )
        raise ValueError(
            f"{file} has arrays such as {listed(sorted(tensors)) or 'none'}, which are those of no "
            f"known model; what can be read is {_KINDS}"
        )
    vit = class_token_vit.read(str(file), tensors)
    kind = "MAE" if vit.is_mae else "timm ViT"
    if vit.left_out:
        logging.info("%s: left out %s", file, listed(vit.left_out))
    return LoadedModel(
        params=vit.params,
        config=None,
        model=vit.model,
        trained_image_size=vit.image_size,
        description=f"{kind} checkpoint {file}",
    )


def _has_header(file: pathlib.Path) -> bool:
    try:
        return bool(read_header(file))
    except ValueError:
        return False


def _read_torch(file: pathlib.Path) -> Tensors:
    """The arrays of a PyTorch checkpoint, as float32. Raises ImportError or ValueError."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"{file} is a PyTorch checkpoint, and reading it needs PyTorch, which is not installed "
            "(pip install torch); or save it as .safetensors where PyTorch is, which needs nothing"
        ) from error
    with open(file, "rb") as opened:
        is_zip = opened.read(len(_ZIP)) == _ZIP
    if is_zip and not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} is truncated: it begins like a PyTorch checkpoint, and the directory at its "
            "end is missing; copy it again"
        )
    # What MAE's whole checkpoints hold beside the arrays.
    harmless = [importlib.import_module("argparse").Namespace]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(os.fspath(file), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
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
        if isinstance(value, torch.Tensor)
    }
