"""Bits per dimension of held-out images (docs/likelihood.md).

For diffusion the evidence lower bound of diffusion/likelihood.py; for the squared error the
Gaussian that it stands for (Section 3.2). The training loss is no likelihood.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from darl_jax.evaluators.base import HostBatches
from darl_jax.generation.generator import pixel_bounds
from darl_jax.methods import Batch
from darl_jax.methods.darl import likelihood
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.likelihood import Bound, Variance
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSE
from darl_jax.methods.darl.reverse import posterior
from darl_jax.nn.patches import patchify
from darl_jax.training.sharding import global_array, replicated


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """How much is measured.

    Attributes:
      steps: T, levels of noise that the bound is a sum over.
      draws: levels s >= 2 that are drawn for each patch, in each of two independent estimates.
      levels: at which the denoiser's error is measured on training images, at least 3.
      train_images: training records that the variances are fitted on.
      images: held-out records that are measured; 0 for all.
      per_dimension: whether `analytic` has a variance for each dimension of a patch, or one alone.
      discretised: whether probabilities of 8-bit pixels are reported, or densities.
    """

    steps: int = 1000
    draws: int = 8
    levels: int = 32
    train_images: int = 1024
    images: int = 0
    per_dimension: bool = True
    discretised: bool = True

    def __post_init__(self) -> None:
        smallest = {"steps": 2, "draws": 1, "levels": 3, "train_images": 1, "images": 0}
        for key, least in smallest.items():
            if getattr(self, key) < least:
                raise ValueError(
                    f"evaluation.likelihood.{key}={getattr(self, key)} must be at least {least}"
                )


def check_objective(config: Any) -> None:
    """Raises ValueError where models of an objective have no likelihood."""
    if config.name not in ("mse", "diffusion"):
        raise ValueError(
            f"objective.name={config.name!r}, which has no likelihood; 'mse' and 'diffusion' have"
        )
    if getattr(config, "normalise_target", False):
        raise ValueError(
            "objective.normalise_target=True, which has no likelihood: what is predicted is "
            "normalised by the patch's own mean and variance, and nothing predicts these"
        )


# --- what two kinds of models have in common -----------------------------------------------------


def _of_each_image(key: PRNGKeyArray, batch: Batch) -> Key[Array, " batch"]:
    """Keys by record, so that noise does not depend on how records are spread over batches."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])


def _encoded(
    objective: MSE | Diffusion, model: DARL, batch: Batch, key: PRNGKeyArray
) -> Float[Array, "batch patch width"]:
    """z of each patch; where the order is random, each image has one that is drawn by record."""
    patches, grid, order = objective.patches(batch), objective.grid(batch), None
    if model.backbone.config.order.name == "random":
        draw = jax.vmap(lambda each: model.draw_order(each, 1, grid)[0])
        order = draw(_of_each_image(key, batch))
    return model.encode(patches, grid, order)


def _reconstruction(
    objective: MSE | Diffusion, batch: Batch, discretised: bool
) -> Callable[[Array, Variance], Array]:
    """(mean, variance) -> nats of each patch of a batch."""
    x = objective.patches(batch)
    if not discretised:
        return lambda mean, variance: likelihood.gaussian_nats(x, mean, variance)
    level = patchify(batch["image"], objective.patch_size).astype(jnp.int32)
    half_bin = np.tile(1.0 / (510.0 * np.asarray(objective.std)), objective.patch_size**2)
    return lambda mean, variance: likelihood.discretised_nats(x, level, half_bin, mean, variance)


@dataclasses.dataclass(frozen=True)
class DiffusionBound:
    """The evidence lower bound of a denoiser, with both reverse variances.

    Settled here: estimates of x are clipped to what pixels can be, as they are in sampling
    (Appendix F), so that it is the bound of the model that is sampled from.
    """

    objective: Diffusion
    config: LikelihoodConfig

    names = likelihood.VARIANCES
    replicates = 2

    @property
    def shares(self) -> tuple[str, ...]:
        """What the bound is a sum of."""
        groups = likelihood.level_groups(self.config.steps)
        return "reconstruction", *(f"by_s/{first}-{last}" for first, last in groups)

    @property
    def levels(self) -> Int[np.ndarray, " measured"]:
        """The levels that the error is measured at."""
        return likelihood.spread_levels(self.config.steps, self.config.levels)

    def squared_errors(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "measured pixel"]:
        """Sums over all patches that count."""
        return likelihood.squared_errors(
            self._denoise(model, batch, key),
            self.objective.patches(batch),
            batch["mask"],
            _of_each_image(jax.random.fold_in(key, 0), batch),
            posterior(self.config.steps),
            self.levels,
        )

    def fitted(self, error: Float[np.ndarray, "measured variance"]) -> tuple[Bound, ...]:
        """From the mean squared error."""
        table = posterior(self.config.steps)
        every = np.arange(1, self.config.steps + 1)
        error = likelihood.interpolate_error(every, self.levels, error)
        return likelihood.analytic_bound(table, error), likelihood.posterior_bound(table)

    def nats(
        self, model: DARL, batch: Batch, key: PRNGKeyArray, fitted: tuple[Bound, ...]
    ) -> Float[Array, "name share replicate batch patch"]:
        """Of each patch."""
        keys = [_of_each_image(jax.random.fold_in(key, i), batch) for i in range(self.replicates)]
        return likelihood.patch_bounds(
            self._denoise(model, batch, key),
            _reconstruction(self.objective, batch, self.config.discretised),
            self.objective.patches(batch),
            jnp.stack(keys),
            posterior(self.config.steps),
            fitted,
            draws=self.config.draws,
        )

    def _denoise(self, model: DARL, batch: Batch, key: PRNGKeyArray) -> likelihood.Denoise:
        """The estimate of x, for which the backbone is paid once."""
        objective = self.objective
        z = _encoded(objective, model, batch, jax.random.fold_in(key, self.replicates))
        denoised = objective.denoiser(model, z)
        low, high = pixel_bounds(objective, objective.patch_size**2 * len(objective.std))
        return lambda x_s, gamma: jnp.clip(denoised(x_s, gamma), low, high)


@dataclasses.dataclass(frozen=True)
class GaussianLikelihood:
    """A Gaussian around what is predicted, with one variance for all dimensions of all patches."""

    objective: MSE
    config: LikelihoodConfig

    names = ("gaussian",)
    replicates = 1  # nothing is random
    shares = ("reconstruction",)
    levels = np.zeros(1, int)  # nothing is corrupted

    def squared_errors(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "measured pixel"]:
        """Sums over all patches that count."""
        error = jax.lax.square(self._predicted(model, batch, key) - self.objective.patches(batch))
        return jnp.sum(jnp.where(batch["mask"][:, None, None], error, 0.0), axis=(0, 1))[None]

    def fitted(self, error: Float[np.ndarray, "measured variance"]) -> Float[np.ndarray, " 1"]:
        """The variance."""
        return np.mean(error, axis=1)

    def nats(
        self, model: DARL, batch: Batch, key: PRNGKeyArray, fitted: Variance
    ) -> Float[Array, "name share replicate batch patch"]:
        """Of each patch."""
        nats = _reconstruction(self.objective, batch, self.config.discretised)
        return nats(self._predicted(model, batch, key), fitted)[None, None, None]

    def _predicted(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "batch patch pixel"]:
        return model.patch_decoder(_encoded(self.objective, model, batch, key)).astype(jnp.float32)


# --- the evaluator -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bits per dimension of a set of images.

    Attributes:
      shares: what a likelihood is a sum of.
      by_patch: by name, of each share at each position, mean over images.
      by_image: by name, of each image, in each independent estimate.
      records: of each image, its number in what was measured.
      levels: at which the model's error was measured.
      error: mean squared error on training images, standardised pixels.
    """

    shares: tuple[str, ...]
    by_patch: dict[str, Float[np.ndarray, "share rows columns"]]
    by_image: dict[str, Float[np.ndarray, "replicate image"]]
    records: Int[np.ndarray, " image"]
    levels: Int[np.ndarray, " measured"]
    error: Float[np.ndarray, "measured variance"]

    def numbers(self) -> Iterator[tuple[str, float]]:
        """likelihood/<name>/bits_per_dim, its errors, and the shares that it is the sum of."""
        number = len(self.records)
        for name, by_patch in self.by_patch.items():
            of_share = by_patch.mean(axis=(1, 2))
            by_image = self.by_image[name]
            yield f"likelihood/{name}/bits_per_dim", float(of_share.sum())
            if number > 1:
                spread = by_image.mean(axis=0).std(ddof=1)
                yield f"likelihood/{name}/standard_error", float(spread / np.sqrt(number))
            if len(by_image) == 2:
                difference = np.linalg.norm(by_image[1] - by_image[0])
                yield f"likelihood/{name}/mc_error", float(difference / (2 * number))
            if len(self.shares) > 1:
                for share, bits in zip(self.shares, of_share, strict=True):
                    yield f"likelihood/{name}/{share}", float(bits)

    def told(self) -> str:
        """The totals in a few words."""
        values = dict(self.numbers())
        totals = [
            f"{name} {values[f'likelihood/{name}/bits_per_dim']:.4f}" for name in self.by_patch
        ]
        return f"likelihood, bits per dimension: {', '.join(totals)}"

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it under plain names, for a file."""
        found = {"shares": np.array(self.shares), "records": self.records}
        for name, by_patch in self.by_patch.items():
            found[f"{name}_by_patch"] = by_patch
            found[f"{name}_by_image"] = self.by_image[name]
        return found | {"levels": self.levels, "error": self.error}


class Likelihood:
    """Fits variances on training images, then measures held-out ones, each exactly once.

    Any variances give a valid likelihood of images that they were not fitted on. Noise is drawn by
    record, so that the answer does not depend on the size of the batches or the devices.

    Args:
      config: how much is measured.
      graphdef: the model without its parameters.
      objective: that it was trained with.
      training_batches: one pass over the images to fit on, without augmentation.
      test_batches: one pass over the images to measure.
      mesh: where the model is.

    Raises:
      ValueError: the objective's models have no likelihood.
    """

    def __init__(
        self,
        config: LikelihoodConfig,
        graphdef: nnx.GraphDef[DARL],
        objective: MSE | Diffusion,
        *,
        training_batches: HostBatches,
        test_batches: HostBatches,
        mesh: Mesh,
    ):
        check_objective(objective.config)
        kind: DiffusionBound | GaussianLikelihood = (
            DiffusionBound(objective, config)
            if isinstance(objective, Diffusion)
            else GaussianLikelihood(objective, config)
        )
        scale, offset = bits_per_dimension(objective, discretised=config.discretised)

        def errors(params: PyTree, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Array]:
            rows, columns = objective.grid(batch)
            sums = kind.squared_errors(nnx.merge(graphdef, params), batch, key)
            return sums, jnp.sum(batch["mask"]) * rows * columns

        def bits(
            params: PyTree, batch: Batch, key: PRNGKeyArray, fitted: Any
        ) -> Mapping[str, Array]:
            nats = kind.nats(nnx.merge(graphdef, params), batch, key, fitted)
            grid = objective.grid(batch)
            found = (scale * nats).at[:, 0].add(offset)  # the density's units, in the first share
            mask = batch["mask"]
            # `where`, not a product: a row that does not count may be non-finite.
            counted = jnp.where(mask[:, None], jnp.mean(found, axis=2), 0.0)
            return {
                "by_image": jnp.mean(jnp.sum(found, axis=1), axis=-1),
                "by_patch": jnp.sum(counted, axis=2).reshape(*found.shape[:2], *grid),
                "index": batch["index"],
                "mask": mask,
            }

        self._kind = kind
        self._per_dimension = config.per_dimension
        self._errors = jax.jit(errors, out_shardings=replicated(mesh))
        self._bits = jax.jit(bits, out_shardings=replicated(mesh))
        self._training_batches = training_batches
        self._test_batches = test_batches
        self._mesh = mesh

    def measure(self, params: PyTree, key: PRNGKeyArray) -> Measured:
        """One pass over the training images and one over the held-out ones.

        Raises:
          ValueError: there is no image to fit on or to measure.
        """
        training_key, test_key = jax.random.split(key)
        error = self.training_error(params, training_key)
        fitted = self._kind.fitted(error)
        parts = []
        for batch in self._test_batches():
            found = self._bits(params, global_array(dict(batch), self._mesh), test_key, fitted)
            parts.append(jax.device_get(found))
        records = np.concatenate([part["index"][part["mask"]] for part in parts] or [[]])
        if not len(records):
            raise ValueError("the validation split holds no image; name one that does")
        order = np.argsort(records)
        by_patch = np.stack([part["by_patch"] for part in parts]).astype(np.float64)
        by_image = np.concatenate([part["by_image"][..., part["mask"]] for part in parts], axis=-1)
        return Measured(
            self._kind.shares,
            dict(zip(self._kind.names, by_patch.sum(axis=0) / len(records), strict=True)),
            dict(zip(self._kind.names, by_image[..., order].astype(np.float64), strict=True)),
            records[order],
            self._kind.levels,
            error,
        )

    def training_error(
        self, params: PyTree, key: PRNGKeyArray
    ) -> Float[np.ndarray, "measured variance"]:
        """Mean squared error at the levels, for each dimension of a patch or one for all.

        Raises:
          ValueError: there is no training image.
        """
        total, count = np.zeros(()), 0.0
        for batch in self._training_batches():
            sums, patches = jax.device_get(
                self._errors(params, global_array(dict(batch), self._mesh), key)
            )
            total, count = total + np.float64(sums), count + float(patches)
        if not count:
            raise ValueError(
                "the training split holds no image that the likelihood's variances can be fitted "
                "on; name one that does"
            )
        error = total / count
        return error if self._per_dimension else np.mean(error, axis=1, keepdims=True)


def bits_per_dimension(objective: MSE | Diffusion, *, discretised: bool) -> tuple[float, float]:
    """(scale, offset) from a patch's nats to bits per dimension of pixels in units of 1/255.

    A density of standardised pixels is one of pixels by log2(255 std), a mean over channels.
    """
    scale = 1.0 / (objective.patch_size**2 * len(objective.std) * np.log(2.0))
    return scale, 0.0 if discretised else float(np.mean(np.log2(255.0 * np.asarray(objective.std))))
