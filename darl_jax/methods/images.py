"""Base of the methods with a ViT backbone on images."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.data.base import Features
from darl_jax.data.images.config import ImagesConfig
from darl_jax.methods.base import Batch, Method, Model
from darl_jax.nn import attention
from darl_jax.nn.flops import backbone_flops
from darl_jax.nn.orders import Order
from darl_jax.nn.patches import patchify, standardize
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViTConfig, layer_of


class Prediction(NamedTuple):
    """Prediction of each patch from those before it; standardized, in raster order."""

    target: Float[Array, "batch patch pixel"]
    predicted: Float[Array, "batch patch pixel"]
    error: Float[Array, "batch patch"]  # squared; nan where a patch is given, not predicted
    order: Order  # of prediction


@dataclasses.dataclass(frozen=True)
class ImageMethod(Method[Model], abc.ABC):
    """ViT on images: standardized patches, grids, layers for decay, kernels."""

    model: ViTConfig
    data: ImagesConfig

    # Whether each image has an attention mask of its own, which not every kernel takes.
    prefix_mask: ClassVar[bool] = False

    def __post_init__(self) -> None:
        groups = ("model", self.model, ViTConfig), ("data", self.data, ImagesConfig)
        for group, value, cls in groups:
            if not isinstance(value, cls):
                raise ValueError(
                    f"objective.name={self.name!r} needs config.{group}.name={cls.name!r}, not "
                    f"{value.name!r}"
                )
        if self.data.image_size % self.model.patch_size:
            raise ValueError(
                f"model.patch_size={self.model.patch_size} must divide config.data.image_size="
                f"{self.data.image_size}"
            )
        for grid in (self.grid, self.trained_grid):
            self.model.order.check(grid)
        super().__post_init__()

    @property
    def inputs(self) -> Features:
        return {"image": self.data.features["image"]}

    @property
    def grid(self) -> Grid:
        """(rows, columns) of patches of an image."""
        side = self.data.image_size // self.model.patch_size
        return side, side

    @property
    def trained_grid(self) -> Grid:
        """(rows, columns) of patches that the positional encoding was trained for."""
        side = (self.model.trained_image_size or self.data.image_size) // self.model.patch_size
        return side, side

    @property
    def patch_dim(self) -> int:
        """Values in a patch."""
        return self.model.patch_size**2 * self.data.channels

    @property
    def tokens(self) -> int:
        """Sequence length: the start token, if any, and all patches."""
        return self.model.start_tokens + math.prod(self.grid)

    def patches(self, batch: Batch) -> Float[Array, "batch patch pixel"]:
        """Standardized patches of a batch's images."""
        images = standardize(batch["image"], self.data.mean, self.data.std)
        return patchify(images, self.model.patch_size)

    def batch_grid(self, batch: Batch) -> Grid:
        """(rows, columns) of patches of a batch's images."""
        _, height, width, _ = batch["image"].shape
        return height // self.model.patch_size, width // self.model.patch_size

    @property
    def num_layers(self) -> int:
        """The embedding, the blocks, and the head."""
        return self.model.depth + 2

    def layer_of(self, path: tuple[str, ...]) -> int | tuple[int, ...]:
        """Layer of a parameter: 0 the embedding, i + 1 block i, depth + 1 the head (Table 9)."""
        if path[0] != "backbone":
            return self.num_layers - 1
        return layer_of(path[1:], self.model.depth)

    def backbone_flops(self, depth: int | None = None) -> int:
        """FLOPs of a forward pass on an image through `depth` blocks, all if not given."""
        patches = math.prod(self.grid)
        return backbone_flops(self.model, patches=patches, patch_dim=self.patch_dim, depth=depth)

    def check_mesh(self, mesh: Mesh) -> None:
        if self.model.num_heads % mesh.shape["tensor"]:
            raise ValueError(
                f"config.model.num_heads={self.model.num_heads} must be a multiple of "
                f"config.mesh.tensor={mesh.shape['tensor']}"
            )

    def kernels(self, device: jax.Device) -> Mapping[str, str]:
        kernel = attention.choose_implementation(
            self.model.attention,
            device=device,
            dtype=self.model.dtype,
            head_dim=self.model.head_dim,
            tokens=self.tokens,
            prefix_mask=self.prefix_mask,
        )
        return {"attention": kernel}


class PatchMethod(ImageMethod[Model], abc.ABC):
    """Method on images whose model predicts patches."""

    @abc.abstractmethod
    def predict(self, model: Model, batch: Batch, key: PRNGKeyArray) -> Prediction:
        """Predicts each patch of each image."""
