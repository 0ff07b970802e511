"""Ways to learn: one file for each, all called as (model, batch, key) -> (loss, metrics)."""

from typing import Any

from darl_jax.methods.base import Batch, Metrics, Objective, PatchObjective, Prediction
from darl_jax.methods.darl.diffusion import Diffusion, DiffusionConfig
from darl_jax.methods.darl.mse import MSE, MSEConfig
from darl_jax.methods.transfer.classification import Classification, ClassificationConfig
from darl_jax.methods.transfer.probes import ProbeObjective, ProbesConfig

ObjectiveConfig = MSEConfig | DiffusionConfig | ClassificationConfig | ProbesConfig

# objective.name -> (its config, the objective)
OBJECTIVES: dict[str, tuple[type, type[Objective[Any]]]] = {
    "mse": (MSEConfig, MSE),
    "diffusion": (DiffusionConfig, Diffusion),
    "classification": (ClassificationConfig, Classification),
    "probes": (ProbesConfig, ProbeObjective),
}

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Metrics",
    "Objective",
    "ObjectiveConfig",
    "PatchObjective",
    "Prediction",
]
