"""Low-rank adapters of a run: merged into the kernels beside them, or written alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from darl_jax.interchange.safetensors_files import write_safetensors
from darl_jax.nn.lora import LoRAConfig, is_adapter, merged
from darl_jax.training.checkpoint.reading import arrays_by_name

ARRAYS_FILE = "adapters.safetensors"


def adapters_of(config: Mapping[str, Any]) -> LoRAConfig | None:
    """Adapters of a run's config; None without any."""
    lora = config.get("objective", {}).get("lora") or {}
    return LoRAConfig(**{**lora, "names": tuple(lora["names"])}) if lora.get("names") else None


def without_adapters(
    params: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's parameters with its adapters merged, and its config without them."""
    lora = adapters_of(config)
    if lora is None:
        return dict(params), dict(config)
    objective = dict(config["objective"])
    objective["lora"] = {**objective["lora"], "names": ()}
    return merged(params, lora.scale), {**config, "objective": objective}


def write_adapters(
    params: Mapping[str, Any], config: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Writes the trained parameters under their paths, and returns them.

    Raises:
      ValueError: the run has no adapters.
    """
    if adapters_of(config) is None:
        raise ValueError(
            "--format=adapters needs a run with adapters, and config.objective.lora.names is empty"
        )
    arrays = {
        path: np.ascontiguousarray(value)
        for path, value in arrays_by_name(params).items()
        if not path.startswith("backbone/") or is_adapter(tuple(path.split("/")))
    }
    write_safetensors(folder / ARRAYS_FILE, arrays, {"format": "np"})
    return arrays
