"""From a config to the objects that it describes."""

import math

from flax import nnx

from darl_jax import flops
from darl_jax.config import TrainConfig
from darl_jax.models.darl import DARL
from darl_jax.objectives import OBJECTIVES, Objective
from darl_jax.train_state import BuildModel


def build_objective(config: TrainConfig) -> Objective:
    """What is learnt."""
    objective = OBJECTIVES[config.objective.name][1]
    return objective(config.objective, config.model.patch_size, config.data.mean, config.data.std)


def model_builder(config: TrainConfig) -> BuildModel:
    """A function from random state to a model."""
    denoising = OBJECTIVES[config.objective.name][1].denoising

    def build(rngs: nnx.Rngs) -> DARL:
        return DARL(
            config.model,
            config.patch_decoder,
            denoising=denoising,
            grid=config.grid,
            channels=config.data.channels,
            rngs=rngs,
        )

    return build


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one step on a whole batch; `flops` writes the convention down."""
    model = config.model
    forward = flops.forward_flops(
        width=model.width,
        depth=model.depth,
        mlp_dim=model.mlp_dim,
        tokens=math.prod(config.grid),
        patch_dim=model.patch_size**2 * config.data.channels,
        objective=config.objective.name,
        decoder_kind=config.patch_decoder.kind,
        decoder_layers=config.patch_decoder.layers,
        condition_on_gamma=config.patch_decoder.condition_on_gamma,
        noise_draws=getattr(config.objective, "draws", 1),
    )
    return flops.train_step_flops(forward, config.batch_size)
