"""Bits per dimension of held-out images (docs/likelihood.md).

For diffusion the evidence lower bound of methods/darl/likelihood.py; for the squared error a
Gaussian (Section 3.2). The training loss is not a likelihood.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from darl_jax.data.base import some_records
from darl_jax.evaluators.base import (
    Context,
    Evaluator,
    EvaluatorConfig,
    HostBatches,
    Value,
    outputs,
)
from darl_jax.evaluators.likelihood_result import Measured, draw_likelihood
from darl_jax.generation.generator import pixel_bounds
from darl_jax.methods.base import Batch, Method
from darl_jax.methods.darl import likelihood
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.likelihood import Bound, Variance
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSE
from darl_jax.methods.darl.reverse import posterior
from darl_jax.nn.patches import patchify
from darl_jax.training.sharding import replicated


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig(EvaluatorConfig):
    """Config of the likelihood.

    Attributes:
      steps: T, number of levels of noise in the bound.
      draws: levels s >= 2 drawn per patch, in each of two independent estimates.
      levels: number of levels to measure the denoiser's error at on training images, at least 3.
      train_images: training records to fit the variances on.
      images: held-out records to measure; 0 for all.
      per_dimension: whether `analytic` has a variance per dimension of a patch, or one for all.
      discretized: whether to report probabilities of 8-bit pixels, or densities.
    """

    kind: str = "likelihood"
    steps: int = 1000
    draws: int = 8
    levels: int = 32
    train_images: int = 1024
    images: int = 0
    per_dimension: bool = True
    discretized: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=2, draws=1, levels=3, train_images=1, images=0)

    def build(self, context: Context) -> "Likelihood":
        """Chooses the records to fit on and to measure."""
        train, held_out = context.splits
        return Likelihood(
            self,
            context,
            training=context.batches(some_records(train, self.train_images)),
            test=context.batches(some_records(held_out, self.images or len(held_out))),
        )


def method_with_likelihood(method: Method) -> MSE | Diffusion:
    """Checks that a method's models have a likelihood. Raises ValueError."""
    if not isinstance(method, MSE | Diffusion):
        raise ValueError(
            f"config.objective.name={method.name!r} has no likelihood; 'mse' and 'diffusion' have"
        )
    if isinstance(method, MSE) and method.objective.normalize_target:
        raise ValueError(
            "config.objective.normalize_target=True has no likelihood: predictions are normalized "
            "by the patch's own mean and variance, and nothing predicts these"
        )
    return method


def _image_keys(key: PRNGKeyArray, batch: Batch) -> Key[Array, " batch"]:
    """Keys by record, so that noise does not depend on the batches."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(batch["index"])


def _encoded(
    method: MSE | Diffusion, model: DARL, batch: Batch, key: PRNGKeyArray
) -> Float[Array, "batch patch width"]:
    """z of each patch; random orders are drawn by record."""
    patches, grid, order = method.patches(batch), method.batch_grid(batch), None
    if model.backbone.config.order.name == "random":
        draw = jax.vmap(lambda each: model.draw_order(each, 1, grid)[0])
        order = draw(_image_keys(key, batch))
    return model.encode(patches, grid, order)


def _reconstruction(
    method: MSE | Diffusion, batch: Batch, discretized: bool
) -> Callable[[Array, Variance], Array]:
    """(mean, variance) -> nats of each patch of a batch."""
    x = method.patches(batch)
    if not discretized:
        return lambda mean, variance: likelihood.gaussian_nats(x, mean, variance)
    level = patchify(batch["image"], method.model.patch_size).astype(jnp.int32)
    half_bin = np.tile(1.0 / (510.0 * np.asarray(method.data.std)), method.model.patch_size**2)
    return lambda mean, variance: likelihood.discretized_nats(x, level, half_bin, mean, variance)


@dataclasses.dataclass(frozen=True)
class DiffusionBound:
    """Evidence lower bound of a denoiser, with both reverse variances.

    Settled here: estimates of x are clipped to the range of pixels, as in sampling (Appendix F).
    """

    method: Diffusion
    config: LikelihoodConfig

    names = likelihood.VARIANCES
    replicates = 2

    @property
    def shares(self) -> tuple[str, ...]:
        """Names of the bound's summands."""
        groups = likelihood.level_groups(self.config.steps)
        return "reconstruction", *(f"by_s/{first}-{last}" for first, last in groups)

    @property
    def levels(self) -> Int[np.ndarray, " measured"]:
        """Levels to measure the error at."""
        return likelihood.spread_levels(self.config.steps, self.config.levels)

    def squared_errors(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "measured pixel"]:
        """Sums over all patches of unmasked images."""
        return likelihood.squared_errors(
            self._denoise(model, batch, key),
            self.method.patches(batch),
            batch["mask"],
            _image_keys(jax.random.fold_in(key, 0), batch),
            posterior(self.config.steps),
            self.levels,
        )

    def fitted(self, error: Float[np.ndarray, "measured variance"]) -> tuple[Bound, ...]:
        """Terms of the bounds from the mean squared error on training images."""
        table = posterior(self.config.steps)
        every = np.arange(1, self.config.steps + 1)
        error = likelihood.interpolate_error(every, self.levels, error)
        return likelihood.analytic_bound(table, error), likelihood.posterior_bound(table)

    def nats(
        self, model: DARL, batch: Batch, key: PRNGKeyArray, fitted: tuple[Bound, ...]
    ) -> Float[Array, "name share replicate batch patch"]:
        """Negative log-likelihood of each patch."""
        keys = [_image_keys(jax.random.fold_in(key, i), batch) for i in range(self.replicates)]
        return likelihood.patch_bounds(
            self._denoise(model, batch, key),
            _reconstruction(self.method, batch, self.config.discretized),
            self.method.patches(batch),
            jnp.stack(keys),
            posterior(self.config.steps),
            fitted,
            draws=self.config.draws,
        )

    def _denoise(self, model: DARL, batch: Batch, key: PRNGKeyArray) -> likelihood.Denoise:
        """Denoiser of a batch; the backbone runs once."""
        method = self.method
        z = _encoded(method, model, batch, jax.random.fold_in(key, self.replicates))
        denoised = method.denoiser(model, z)
        low, high = pixel_bounds(method)
        return lambda x_s, gamma: jnp.clip(denoised(x_s, gamma), low, high)


@dataclasses.dataclass(frozen=True)
class GaussianLikelihood:
    """Gaussian around the prediction, with one variance for all dimensions of all patches."""

    method: MSE
    config: LikelihoodConfig

    names = ("gaussian",)
    replicates = 1  # nothing is random
    shares = ("reconstruction",)
    levels = np.zeros(1, int)  # nothing is corrupted

    def squared_errors(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "measured pixel"]:
        """Sums over all patches of unmasked images."""
        error = jax.lax.square(self._predicted(model, batch, key) - self.method.patches(batch))
        return jnp.sum(jnp.where(batch["mask"][:, None, None], error, 0.0), axis=(0, 1))[None]

    def fitted(self, error: Float[np.ndarray, "measured variance"]) -> Float[np.ndarray, " 1"]:
        """Variance from the mean squared error on training images."""
        return np.mean(error, axis=1)

    def nats(
        self, model: DARL, batch: Batch, key: PRNGKeyArray, fitted: Variance
    ) -> Float[Array, "name share replicate batch patch"]:
        """Negative log-likelihood of each patch."""
        nats = _reconstruction(self.method, batch, self.config.discretized)
        return nats(self._predicted(model, batch, key), fitted)[None, None, None]

    def _predicted(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> Float[Array, "batch patch pixel"]:
        return model.patch_decoder(_encoded(self.method, model, batch, key)).astype(jnp.float32)


class Likelihood(Evaluator):
    """Fits variances on training images, then measures held-out ones, each exactly once.

    The likelihood is valid for any variances not fitted on the measured images. Noise is drawn by
    record: values do not depend on the batch size or the devices, and are the same each time.
    """

    def __init__(
        self,
        config: LikelihoodConfig,
        context: Context,
        *,
        training: HostBatches,
        test: HostBatches,
    ):
        method, graphdef = method_with_likelihood(context.method), context.graphdef
        kind: DiffusionBound | GaussianLikelihood = (
            DiffusionBound(method, config)
            if isinstance(method, Diffusion)
            else GaussianLikelihood(method, config)
        )
        scale, offset = bits_per_dimension(method, discretized=config.discretized)

        def errors(params: PyTree, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Array]:
            rows, columns = method.batch_grid(batch)
            sums = kind.squared_errors(nnx.merge(graphdef, params), batch, key)
            return sums, jnp.sum(batch["mask"]) * rows * columns

        def bits(
            params: PyTree, batch: Batch, key: PRNGKeyArray, fitted: Any
        ) -> Mapping[str, Array]:
            nats = kind.nats(nnx.merge(graphdef, params), batch, key, fitted)
            grid = method.batch_grid(batch)
            found = (scale * nats).at[:, 0].add(offset)  # the density's units, in the first share
            mask = batch["mask"]
            # `where`, not a product: padding may be non-finite.
            counted = jnp.where(mask[:, None], jnp.mean(found, axis=2), 0.0)
            return {
                "by_image": jnp.mean(jnp.sum(found, axis=1), axis=-1),
                "by_patch": jnp.sum(counted, axis=2).reshape(*found.shape[:2], *grid),
                "index": batch["index"],
                "mask": mask,
            }

        self._kind = kind
        self._per_dimension = config.per_dimension
        self._key, self._mesh = context.key, context.mesh
        self._errors = jax.jit(errors, out_shardings=replicated(self._mesh))
        self._bits = jax.jit(bits, out_shardings=replicated(self._mesh))
        self._training, self._test = training, test

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, Value]]:
        """Yields the numbers, and a picture of the shares and arrays named `likelihood`."""
        measured = self.measure(params)
        yield from measured.numbers()
        yield "likelihood", draw_likelihood(measured, step)
        yield "likelihood", measured.arrays()

    def summary(self, values: Mapping[str, float]) -> str:
        """Totals in bits per dimension."""
        totals = [f"{name} {values[f'{name}/bits_per_dim']:.4f}" for name in self._kind.names]
        return f"bits per dimension: {', '.join(totals)}"

    def measure(self, params: PyTree) -> Measured:
        """Measures in one pass over the training images and one over the held-out ones.

        Raises:
          ValueError: there is no image to fit on or to measure.
        """
        training_key, test_key = jax.random.split(self._key)
        error = self.training_error(params, training_key)
        fitted = self._kind.fitted(error)
        parts = [*outputs(self._bits, params, self._test, self._mesh, test_key, fitted)]
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
        """Mean squared error at the levels, for each dimension of a patch or for all.

        Raises:
          ValueError: there is no training image.
        """
        total, count = np.zeros(()), 0.0
        for sums, patches in outputs(self._errors, params, self._training, self._mesh, key):
            total, count = total + np.float64(sums), count + float(patches)
        if not count:
            raise ValueError(
                "the training split holds no image that the likelihood's variances can be fitted "
                "on; name one that does"
            )
        error = total / count
        return error if self._per_dimension else np.mean(error, axis=1, keepdims=True)


def bits_per_dimension(method: MSE | Diffusion, *, discretized: bool) -> tuple[float, float]:
    """(scale, offset) from a patch's nats to bits per dimension of pixels in units of 1/255.

    log2(255 std), a mean over channels, converts a density of standardized pixels.
    """
    scale = 1.0 / (method.model.patch_size**2 * len(method.data.std) * np.log(2.0))
    return scale, 0.0 if discretized else float(
        np.mean(np.log2(255.0 * np.asarray(method.data.std)))
    )
