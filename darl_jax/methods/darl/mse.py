"""Squared-error objective (Section 3.2): the model's output is the mean of the next patch."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, PatchObjective, Prediction, average
from darl_jax.methods.darl.model import DARL
from darl_jax.nn.patches import normalise_patches, patch_statistics, squared_error


@dataclasses.dataclass(frozen=True)
class MSEConfig:
    """Which target the squared error is taken to."""

    name: str = "mse"
    normalise_target: bool = False  # each patch by its own mean and variance (Table 14)


@dataclasses.dataclass(frozen=True)
class MSE(PatchObjective):
    """Mean over examples, patches and pixel values of ||f(x_{<t}) - x_t||^2."""

    denoising: ClassVar[bool] = False

    config: MSEConfig

    def __call__(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss; nothing is random but an order that is drawn for each image."""
        error = self.predict(model, batch, key).error
        loss = average(error, batch["mask"])
        return loss.compute(), {"loss": loss}

    def predict(self, model: DARL, batch: Batch, key: PRNGKeyArray) -> Prediction:
        """Predictions as standardised pixels, errors against the target that is trained on."""
        patches, grid = self.patches(batch), self.grid(batch)
        order = model.draw_order(key, len(patches), grid)
        output = model.patch_decoder(model.encode(patches, grid, order))
        if not self.config.normalise_target:
            return Prediction(patches, output, squared_error(output, patches), order)
        mean, std = patch_statistics(patches)
        error = squared_error(output, normalise_patches(patches))
        return Prediction(patches, output * std + mean, error, order)
