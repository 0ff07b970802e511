"""From a config to the objects that it describes."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from darl_jax.config import ConfigError, TrainConfig
from darl_jax.methods import OBJECTIVES, Objective, PatchObjective
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.transfer.classification import ClassificationConfig
from darl_jax.methods.transfer.classifier import Classifier
from darl_jax.methods.transfer.probe_model import Probes
from darl_jax.methods.transfer.probes import ProbesConfig
from darl_jax.nn import flops
from darl_jax.training.optimizers import make_optimizer
from darl_jax.training.sharding import batch_sharding
from darl_jax.training.state import BuildModel


def with_classes(config: TrainConfig, classes: int, dataset: str) -> TrainConfig:
    """The config with the number of classes that a dataset has, where labels are learnt.

    Raises:
      ConfigError: the dataset has no labels, or the config says another number.
    """
    objective = config.objective
    if not isinstance(objective, (ClassificationConfig, ProbesConfig)):
        return config
    if not classes:
        raise ConfigError(
            f"{dataset} has no labels, which config.objective.name={objective.name!r} learns"
        )
    if objective.num_classes not in (None, classes):
        raise ConfigError(
            f"config.objective.num_classes={objective.num_classes}, and {dataset} has {classes}"
        )
    objective = dataclasses.replace(objective, num_classes=classes)
    return dataclasses.replace(config, objective=objective)


def build_objective(config: TrainConfig) -> Objective:
    """What is learnt."""
    objective = OBJECTIVES[config.objective.name][1]
    return objective(config.objective, config.model.patch_size, config.data.mean, config.data.std)


def model_builder(config: TrainConfig) -> BuildModel:
    """A function from random state to the model that the objective learns with.

    Raises:
      ConfigError: the objective needs a number of classes, and there is none.
    """
    objective, vit = config.objective, config.model
    shape: Any = {"grid": config.trained_grid, "channels": config.data.channels}
    if isinstance(objective, (ClassificationConfig, ProbesConfig)):
        if objective.num_classes is None:
            raise ConfigError(
                "config.objective.num_classes is not given, and no dataset is here to count them"
            )
        shape |= {"num_classes": objective.num_classes}

    def build(rngs: nnx.Rngs) -> nnx.Module:
        if isinstance(objective, ClassificationConfig):
            return Classifier(vit, **shape, rngs=rngs)
        if isinstance(objective, ProbesConfig):
            return Probes(vit, objective, **shape, rngs=rngs)
        cls = OBJECTIVES[objective.name][1]
        denoising = issubclass(cls, PatchObjective) and cls.denoising
        return DARL(vit, config.patch_decoder, denoising=denoising, **shape, rngs=rngs)

    return build


def build_optimizer(
    config: TrainConfig, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The optimiser, with what the objective leaves as it is and what learns side by side."""
    objective = OBJECTIVES[config.objective.name][1]
    return make_optimizer(
        config.optimizer,
        learning_rate,
        depth=config.model.depth,
        frozen=objective.frozen,
        stacked=objective.stacked,
    )


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one step on a whole batch; `flops` writes the convention down."""
    model, objective, patches = config.model, config.objective, math.prod(config.grid)
    patch_dim = model.patch_size**2 * config.data.channels
    shape = {"width": model.width, "depth": model.depth, "mlp_dim": model.mlp_dim}
    if isinstance(objective, (ClassificationConfig, ProbesConfig)):
        backbone = flops.backbone_flops(**shape, patches=patches, patch_dim=patch_dim)
        head = flops.probe_flops(
            kind=objective.kind if isinstance(objective, ProbesConfig) else "linear",
            width=model.width,
            num_heads=model.num_heads,
            patches=patches,
            num_classes=objective.num_classes or 0,
        )
        if isinstance(objective, ClassificationConfig):
            return flops.train_step_flops(backbone + head, config.batch_size)
        # The backbone has no backward pass.
        probes = flops.train_step_flops(model.depth * head, config.batch_size)
        return backbone * config.batch_size + probes
    forward = flops.forward_flops(
        **shape,
        tokens=patches,
        patch_dim=patch_dim,
        objective=objective.name,
        decoder_kind=config.patch_decoder.kind,
        decoder_layers=config.patch_decoder.layers,
        condition_on_gamma=config.patch_decoder.condition_on_gamma,
        noise_draws=getattr(objective, "draws", 1),
        two_stream=model.two_stream,
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
        "label": array((), np.int32),
        "mask": array((), np.bool_),
        "replaced": array((), np.bool_),
        "stop": array((), np.bool_),
    }
