"""Masked autoencoding (arXiv 2111.06377): squared error of the patches that were removed."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, ObjectiveConfig, average
from darl_jax.methods.images import ImageMethod
from darl_jax.methods.mae.model import MAE, DecoderConfig
from darl_jax.nn import attention, orders, positions
from darl_jax.nn.flops import backbone_flops, block_flops, linear
from darl_jax.nn.patches import normalize_patches, patch_statistics, squared_error


class Reconstruction(NamedTuple):
    """Images and their reconstructions as standardized patches, in raster order."""

    target: Float[Array, "batch patch pixel"]
    reconstructed: Float[Array, "batch patch pixel"]  # kept patches as they are
    kept: Bool[Array, "batch patch"]


@dataclasses.dataclass(frozen=True)
class MAEConfig(ObjectiveConfig):
    """Config of MAE; the defaults are the paper's (Section 4.1).

    Attributes:
      mask_ratio: share of the patches that are removed; the number that is kept is rounded down.
      normalize_target: standardize each target patch by its own mean and variance.
      decoder: the decoder's shape.
    """

    name: str = "mae"
    mask_ratio: float = 0.75
    normalize_target: bool = False
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)

    def kept(self, patches: int) -> int:
        """Number of patches that the encoder sees, in the reference's arithmetic."""
        return int(patches * (1 - self.mask_ratio))


@dataclasses.dataclass(frozen=True)
class MAEMethod(ImageMethod[MAE]):
    """Mean over images, removed patches and pixel values of the squared error (Section 3).

    Raises:
      ValueError: positions that do not say where a patch is, an order of patches, or a mask ratio
        that leaves none or all of them.
    """

    objective: MAEConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.positions not in positions.ABSOLUTE:
            raise ValueError(
                f"model.positions={self.model.positions!r} does not say where a removed patch is; "
                f"choose from {list(positions.ABSOLUTE)}"
            )
        if self.model.order.name != "raster":
            raise ValueError(
                f"model.order.name={self.model.order.name!r} means nothing to "
                "config.objective.name='mae', which draws the patches it keeps; choose 'raster'"
            )
        patches = math.prod(self.grid)
        if not 0 < self.objective.kept(patches) < patches:
            raise ValueError(
                f"objective.mask_ratio={self.objective.mask_ratio} keeps "
                f"{self.objective.kept(patches)} of {patches} patches; it must keep and remove at "
                "least one"
            )
        self.objective.decoder.transformer(self.model)

    @property
    def tokens(self) -> int:
        """Sequence length of the encoder: the start token, if any, and the kept patches."""
        return self.model.start_tokens + self.objective.kept(math.prod(self.grid))

    def init(self, rngs: nnx.Rngs) -> MAE:
        return MAE(
            self.model,
            self.objective.decoder,
            grid=self.trained_grid,
            channels=self.data.channels,
            rngs=rngs,
        )

    def flops(self) -> int:
        """Encoder on the kept patches, decoder on all, pixels of the removed ones."""
        patches = math.prod(self.grid)
        kept = self.objective.kept(patches)
        decoder = self.objective.decoder.transformer(self.model)
        forward = (
            backbone_flops(self.model, patches=kept, patch_dim=self.patch_dim)
            + self.tokens * linear(self.model.width, decoder.width)
            + decoder.depth * block_flops(decoder, self.model.start_tokens + patches)
            + (patches - kept) * linear(decoder.width, self.patch_dim)
        )
        return 3 * forward

    def loss(self, model: MAE, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Loss; `key` draws the patches that are kept."""
        order = draw_shuffle(key, len(batch["image"]), math.prod(self.batch_grid(batch)))
        loss = average(self.errors(model, batch, order), batch["mask"])
        return loss.compute(), {"loss": loss}

    def errors(
        self, model: MAE, batch: Batch, order: Int[Array, "batch patch"]
    ) -> Float[Array, "batch removed"]:
        """Squared error of each removed patch, where an order's first patches are kept."""
        patches, kept = self.patches(batch), self.objective.kept(order.shape[1])
        predicted = model(patches, order, kept=kept, grid=self.batch_grid(batch))
        target = orders.take(patches, order[:, kept:])
        if self.objective.normalize_target:
            target = normalize_patches(target)
        return squared_error(predicted, target)

    def reconstruct(self, model: MAE, batch: Batch, key: PRNGKeyArray) -> Reconstruction:
        """Images with their removed patches predicted, in pixels whatever the target is.

        Predictions of normalized patches get the mean and deviation of the patch that was removed.
        """
        patches, grid = self.patches(batch), self.batch_grid(batch)
        order = draw_shuffle(key, *patches.shape[:2])
        kept, inverse = self.objective.kept(order.shape[1]), jnp.argsort(order, axis=1)
        predicted = model(patches, order, kept=kept, grid=grid)
        shuffled = orders.take(patches, order)
        if self.objective.normalize_target:
            mean, std = patch_statistics(shuffled[:, kept:])
            predicted = predicted * std + mean
        shuffled = jnp.concatenate([shuffled[:, :kept], predicted], axis=1)
        return Reconstruction(patches, orders.take(shuffled, inverse), inverse < kept)

    def check_mesh(self, mesh: Mesh) -> None:
        super().check_mesh(mesh)
        if self.objective.decoder.num_heads % mesh.shape["tensor"]:
            raise ValueError(
                f"config.objective.decoder.num_heads={self.objective.decoder.num_heads} must be a "
                f"multiple of config.mesh.tensor={mesh.shape['tensor']}"
            )

    def kernels(self, device: jax.Device) -> Mapping[str, str]:
        decoder = self.objective.decoder.transformer(self.model)
        kernel = attention.choose_implementation(
            self.model.attention,
            device=device,
            dtype=self.model.dtype,
            head_dim=decoder.head_dim,
            tokens=self.model.start_tokens + math.prod(self.grid),
        )
        return {**super().kernels(device), "attention of the decoder": kernel}


def draw_shuffle(key: PRNGKeyArray, images: int, patches: int) -> Int[Array, "images patches"]:
    """A random permutation of the patches for each image: the ranking of uniform noise.

    Drawn over the global batch, so that it does not depend on the mesh.
    """
    return jnp.argsort(jax.random.uniform(key, (images, patches)), axis=1)
