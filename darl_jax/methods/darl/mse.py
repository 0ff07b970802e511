"""Squared-error objective (Section 3.2): the model's output is the mean of the next patch."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, average
from darl_jax.methods.darl.base import DARLConfig, DARLMethod
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.images import Prediction
from darl_jax.nn.patches import normalize_patches, patch_statistics, squared_error


@dataclasses.dataclass(frozen=True)
class MSEConfig(DARLConfig):
    """Config of the squared error.

    Attributes:
      normalize_target: standardize each patch by its own mean and variance (Table 14).
    """

    name: str = "mse"
    normalize_target: bool = False

    def __post_init__(self) -> None:
        if self.patch_decoder.kind != "mlp" or self.patch_decoder.condition_on_gamma:
            raise ValueError(
                "objective.patch_decoder.kind must be 'mlp' and "
                "config.objective.patch_decoder.condition_on_gamma False with "
                "config.objective.name='mse'; the others need config.objective.name='diffusion'"
            )


@dataclasses.dataclass(frozen=True)
class MSE(DARLMethod):
    """Mean over examples, patches and pixel values of ||f(x_{<t}) - x_t||^2."""

    denoising: ClassVar[bool] = False

    objective: MSEConfig

    def loss(
        self, model: DARL, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss; `key` draws the orders, if they are random."""
        error = self.predict(model, batch, key).error
        loss = average(error, batch["mask"])
        return loss.compute(), {"loss": loss}

    def predict(self, model: DARL, batch: Batch, key: PRNGKeyArray) -> Prediction:
        """Predictions as standardized pixels, errors against the (normalized) target."""
        patches, grid = self.patches(batch), self.batch_grid(batch)
        order = model.draw_order(key, len(patches), grid)
        output = model.patch_decoder(model.encode(patches, grid, order))
        if not self.objective.normalize_target:
            return Prediction(patches, output, squared_error(output, patches), order)
        mean, std = patch_statistics(patches)
        error = squared_error(output, normalize_patches(patches))
        return Prediction(patches, output * std + mean, error, order)
