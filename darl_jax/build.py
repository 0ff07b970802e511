"""From a config to the objects that it describes."""

import math

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from darl_jax import flops
from darl_jax.config import ConfigError, TrainConfig
from darl_jax.models.darl import DARL
from darl_jax.objectives import OBJECTIVES, Objective
from darl_jax.sharding import batch_sharding
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


def check_layout(config: TrainConfig, mesh: Mesh) -> None:
    """Whether batch and heads can be split as the mesh says.

    Raises:
      ConfigError: they cannot.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = shards * config.accumulation_steps
    if config.batch_size % parts:
        raise ConfigError(
            f"config.batch_size={config.batch_size} must be a multiple of {parts}: {shards} "
            f"devices along mesh.data and mesh.fsdp, times accumulation_steps="
            f"{config.accumulation_steps}"
        )
    if config.model.num_heads % mesh.shape["tensor"]:
        raise ConfigError(
            f"config.model.num_heads={config.model.num_heads} must be a multiple of "
            f"config.mesh.tensor={mesh.shape['tensor']}"
        )
    process = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(shards, -1)
    if (process != process[:, :1]).any():
        # Each process reads rows of its own, and these devices share theirs.
        raise ConfigError(
            f"config.mesh.tensor={mesh.shape['tensor']} joins devices of several processes; it "
            "must stay within one"
        )


def abstract_batch(config: TrainConfig, mesh: Mesh) -> PyTree:
    """Shapes and shardings of what a step reads of a batch, to compile before there is one."""
    size, sharding = config.data.image_size, batch_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=sharding)

    return {
        "image": array((size, size, config.data.channels), np.uint8),
        "mask": array((), np.bool_),
        "replaced": array((), np.bool_),
        "stop": array((), np.bool_),
    }
