"""Models in the names of other projects, to read and to write."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from darl_jax.interchange import (
    aim_names,
    aimv2_names,
    class_token_vit,
    mae_names,
    nepa_names,
)
from darl_jax.interchange.name_schemes import ForeignModel, Scheme
from darl_jax.interchange.names import Tensors

SCHEMES: tuple[Scheme, ...] = (
    aim_names.ML_AIM,
    aim_names.ML_L3M,
    aimv2_names.ML_AIM,
    aimv2_names.TIMM,
    aimv2_names.TRANSFORMERS,
    aimv2_names.OLD_TRANSFORMERS,
    nepa_names.NEPA,
)
Write = Callable[[Mapping[str, Any], Mapping[str, Any]], Tensors]
# --format -> the family in words, and the function that converts parameters.
FORMATS: dict[str, tuple[str, Write]] = {
    "aim": (aim_names.ML_AIM.title, aim_names.ML_AIM.write),
    "aim-l3m": (aim_names.ML_L3M.title, aim_names.ML_L3M.write),
    "aimv2": (aimv2_names.ML_AIM.title, aimv2_names.ML_AIM.write),
    "aimv2-timm": (aimv2_names.TIMM.title, aimv2_names.TIMM.write),
    "aimv2-transformers": (aimv2_names.TRANSFORMERS.title, aimv2_names.TRANSFORMERS.write),
    "mae": ("MAE", mae_names.write),
    "nepa": (nepa_names.NEPA.title, nepa_names.NEPA.write),
}


def read(what: str, tensors: Mapping[str, np.ndarray]) -> ForeignModel | None:
    """Converts the arrays of the file `what`; None where no known project has such names.

    Raises:
        ValueError: arrays are missing, too many or of wrong shapes, or ViT has no such model.
    """
    for scheme in SCHEMES:
        if scheme.recognizes(tensors):
            return scheme.read(what, tensors)
    return class_token_vit.read(what, tensors) if class_token_vit.looks_like(tensors) else None


def write(form: str, params: Mapping[str, Any], model: Mapping[str, Any]) -> Tensors:
    """Converts a run's parameters to a format of FORMATS.

    Args:
        form: the format.
        params: nested.
        model: the group 'model' of an export's config (described.py).

    Raises:
        ValueError: the family has no such backbone.
    """
    try:
        return FORMATS[form][1](params, model)
    except ValueError as error:
        raise ValueError(f"--format={form}: {error}; --format=safetensors keeps it") from error


def dropped(form: str, params: Mapping[str, Any]) -> list[str]:
    """Groups of parameters that a format leaves out."""
    kept = {"backbone"}
    if form == "mae":
        kept |= {"mae_decoder"} | ({"head", "pooled_norm"} if "pooled_norm" in params else set())
    return [name for name in params if name not in kept]


def report(what: str, model: ForeignModel) -> str:
    """A line for the log: the family, its images, and what of the file was left out."""
    keys = "width depth num_heads mlp_dim patch_size positions".split()
    sizes = ", ".join(f"{key}={model.model[key]}" for key in keys if key in model.model)
    size = f"images of {model.image_size} pixels" if model.image_size else "images of any size"
    parts = [f"{what} is {model.title}: {sizes}, {size}"]
    if model.standardized is not None:
        mean, std = model.standardized
        parts.append(f"they are standardized by mean {mean} and std {std}")
    if model.notes:
        parts.append(model.notes)
    if model.left_out:
        groups: dict[str, int] = {}
        for name in model.left_out:
            group = name.split(".")[0]
            groups[group] = groups.get(group, 0) + 1
        counted = (f"{group} ({count})" for group, count in groups.items())
        parts.append(f"left out arrays: {', '.join(counted)}")
    return "; ".join(parts)
