"""Methods on small images, without files."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from darl_jax.data.images.config import ImagesConfig
from darl_jax.methods import METHODS, Batch, ObjectiveConfig
from darl_jax.nn.vit import ViTConfig


def images(
    image_size: int = 8, mean: tuple[float, ...] = (0.3,), std: tuple[float, ...] = (0.4,)
) -> ImagesConfig:
    return ImagesConfig(
        source="digits", image_size=image_size, channels=len(mean), mean=mean, std=std
    )


RGB_MEAN, RGB_STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RGB = images(8, RGB_MEAN, RGB_STD)


def rgb_batch(examples: int, width: int = 8, brightest: int = 255) -> Batch:
    """Random images of 8 rows, which all count."""
    shape = (examples, 8, width, 3)
    pixels = np.random.default_rng(0).integers(0, brightest + 1, shape, np.uint8)
    return {"image": jnp.asarray(pixels), "mask": jnp.ones(examples, bool)}


def method(
    objective: ObjectiveConfig,
    vit: ViTConfig | None = None,
    data: ImagesConfig | None = None,
    **model: Any,
) -> Any:
    """The method of an objective; `model` changes keys of a small ViT."""
    vit = vit or ViTConfig(
        width=16, depth=1, num_heads=2, mlp_dim=32, dtype="float32", patch_size=2
    )
    return METHODS[objective.name][1](
        objective, dataclasses.replace(vit, **model), data or images()
    )
