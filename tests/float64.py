"""Layers in plain NumPy and float64, on parameters as modules have them."""

from collections.abc import Mapping

import numpy as np
from jax.typing import ArrayLike


def dense(params: Mapping[str, ArrayLike], x: ArrayLike) -> np.ndarray:
    return np.float64(x) @ np.float64(params["kernel"]) + np.float64(params["bias"])


def layer_norm(params: Mapping[str, ArrayLike], x: ArrayLike) -> np.ndarray:
    x = np.float64(x)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normal * np.float64(params["scale"]) + np.float64(params["bias"])


def log_softmax(logits: ArrayLike) -> np.ndarray:
    shifted = np.float64(logits) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
