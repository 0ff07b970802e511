"""Methods on small images, without files."""

import dataclasses
from typing import Any

from darl_jax.data.images.config import ImagesConfig
from darl_jax.methods import METHODS, ObjectiveConfig
from darl_jax.nn.vit import ViTConfig


def images(
    image_size: int = 8, mean: tuple[float, ...] = (0.3,), std: tuple[float, ...] = (0.4,)
) -> ImagesConfig:
    return ImagesConfig(
        source="digits", image_size=image_size, channels=len(mean), mean=mean, std=std
    )


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
