"""Ways to learn: one file for each, all called as (model, batch, key) -> (loss, metrics)."""

from darl_jax.objectives.base import Batch, Metrics, Objective, Prediction
from darl_jax.objectives.diffusion import Diffusion, DiffusionConfig
from darl_jax.objectives.mse import MSE, MSEConfig

ObjectiveConfig = MSEConfig | DiffusionConfig

# objective.name -> (its config, the objective)
OBJECTIVES: dict[str, tuple[type, type[Objective]]] = {
    "mse": (MSEConfig, MSE),
    "diffusion": (DiffusionConfig, Diffusion),
}

__all__ = ["OBJECTIVES", "Batch", "Metrics", "Objective", "ObjectiveConfig", "Prediction"]
