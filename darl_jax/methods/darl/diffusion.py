"""Diffusion objective (Sections 3.2 and 3.3): denoise each patch given those before it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, average
from darl_jax.methods.darl.base import DARLConfig, DARLMethod
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.patch_decoders import Denoise
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.methods.darl.schedules import Schedule, ScheduleConfig, make_schedule
from darl_jax.methods.images import Prediction
from darl_jax.nn.patches import squared_error

PREDICTIONS = ("x0", "epsilon")

# x^0 is recovered from predicted noise by a division by sqrt(gamma).
SMALLEST_GAMMA_TO_INVERT = 1e-5

# Noise level of `predict`. x^0 can be predicted from pure noise and the patches before; the noise
# itself cannot, so a little of the patch is left in.
_SHOWN_GAMMA = {"x0": 0.0, "epsilon": 0.1}


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(DARLConfig):
    """Config of diffusion.

    Attributes:
      prediction: output of the patch decoder, 'x0' or 'epsilon' (Section 4.1: 83.6 against 82.9).
      schedule: distribution of the noise level gamma.
      draws: draws of (gamma, noise) per pass of the backbone.
      sampler: default sampler of a trained model; training does not read it.
    """

    name: str = "diffusion"
    prediction: str = "x0"
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    draws: int = 1
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"objective.prediction={self.prediction!r} is unknown; choose from {PREDICTIONS}"
            )
        if self.draws < 1:
            raise ValueError(f"objective.draws={self.draws} must be at least 1")
        make_schedule(self.schedule)  # raises ValueError for a bad schedule


@dataclasses.dataclass(frozen=True)
class Diffusion(DARLMethod):
    """Mean of ||x^0 - g(x^s, z)||^2, unweighted, with x^s = sqrt(gamma) x^0 + sqrt(1-gamma) eps.

    Each patch has its own gamma, drawn independently from the schedule, and its own noise.
    """

    denoising: ClassVar[bool] = True

    objective: DiffusionConfig

    @property
    def draws(self) -> int:
        return self.objective.draws

    @property
    def schedule(self) -> Schedule:
        """Distribution of gamma."""
        return make_schedule(self.objective.schedule)

    def loss(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss, in total and by the schedule's deciles of gamma; decile 0 has the most noise."""
        patches, grid = self.patches(batch), self.batch_grid(batch)
        # A random order has a third key of its own.
        order = model.draw_order(jax.random.fold_in(key, 2), len(patches), grid)
        gamma_key, noise_key = jax.random.split(key)
        shape = (self.objective.draws, *patches.shape)
        gamma = self.schedule.sample(gamma_key, (*shape[:-1], 1))
        noise = jax.random.normal(noise_key, shape, jnp.float32)
        z = model.encode(patches, grid, order)
        output = model.patch_decoder(z, corrupt(patches, noise, gamma), gamma)
        target = noise if self.objective.prediction == "epsilon" else patches
        error = squared_error(output, jnp.broadcast_to(target, shape))

        loss = average(error, batch["mask"])
        metrics = {"loss": loss}
        edges = np.float32(self.schedule.quantile(np.arange(1, 10) / 10))
        decile = jnp.sum(gamma > edges, axis=-1)
        for i in range(10):
            metrics[f"loss_by_gamma/decile_{i}"] = average(error, batch["mask"], decile == i)
        return loss.compute(), metrics

    def predict(self, model: DARL, batch: Batch, key: PRNGKeyArray) -> Prediction:
        """Estimates x^0 in one step: from pure noise if the model predicts x^0."""
        patches, grid = self.patches(batch), self.batch_grid(batch)
        order = model.draw_order(jax.random.fold_in(key, 2), len(patches), grid)
        noise = jax.random.normal(key, (1, *patches.shape), jnp.float32)
        gamma = jnp.full((*noise.shape[:-1], 1), _SHOWN_GAMMA[self.objective.prediction])
        x_s = corrupt(patches, noise, gamma)
        z = model.encode(patches, grid, order)
        x_0 = self.denoised(model, z, x_s, gamma)
        return Prediction(patches, x_0[0], squared_error(x_0[0], patches), order)

    def denoised(
        self,
        model: DARL,
        z: Float[Array, "batch patch width"],
        x_s: Float[Array, "draw batch patch pixel"],
        gamma: Float[Array, "draw batch patch 1"],
    ) -> Float[Array, "draw batch patch pixel"]:
        """Estimate of the clean patches x^0, whatever the decoder predicts; float32."""
        return self.denoiser(model, z)(x_s, gamma)

    def denoiser(self, model: DARL, z: Float[Array, "batch patch width"]) -> Denoise:
        """`denoised` for one z and many levels; computations on z alone are done once."""
        decode = model.patch_decoder.denoiser(z)

        def denoised(x_s: Array, gamma: Array) -> Array:
            output = decode(x_s, gamma).astype(jnp.float32)
            return output if self.objective.prediction == "x0" else denoise(x_s, output, gamma)

        return denoised


def corrupt(
    patches: Float[Array, "batch patch pixel"],
    noise: Float[Array, "draw batch patch pixel"],
    gamma: Float[Array, "draw batch patch 1"],
) -> Float[Array, "draw batch patch pixel"]:
    """x^s = sqrt(gamma) x^0 + sqrt(1 - gamma) noise, in float32."""
    return jnp.sqrt(gamma) * patches + jnp.sqrt(1.0 - gamma) * noise


def denoise(
    x_s: Float[Array, "draw batch patch pixel"],
    noise: Float[Array, "draw batch patch pixel"],
    gamma: Float[Array, "draw batch patch 1"],
) -> Float[Array, "draw batch patch pixel"]:
    """x^0 from x^s and predicted noise; gamma is clamped to at least 1e-5."""
    gamma = jnp.maximum(gamma, SMALLEST_GAMMA_TO_INVERT)
    return (x_s - jnp.sqrt(1.0 - gamma) * noise) / jnp.sqrt(gamma)
