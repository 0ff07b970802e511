"""Checkpoints of tiny models with random parameters, as a run would have saved them."""

import pathlib

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from darl_jax.codec.model import numerics, open_model
from darl_jax.config import default_config, load, to_dict
from darl_jax.training.checkpoint import Checkpointer, restore_params
from tests.random_modules import random_module


def images(channels: int = 1, **objective) -> ConfigDict:
    """Pictures of 4 x 4 pixels."""
    config = default_config(objective="ardm", model="ardm_unet")
    config.objective.update(objective)
    config.model.update(width=8, embedding_width=2, blocks=1, groups=2, attention_sizes=())
    config.data.update(
        source="digits", image_size=4, channels=channels, mean=(0.3,) * channels,
        std=(0.4,) * channels, in_memory=True,
    )  # fmt: skip
    return config


def text() -> ConfigDict:
    """Pieces of 12 letters, order-agnostic."""
    config = default_config(objective="ardm", model="ardm_transformer", data="text")
    config.model.update(width=8, depth=1, num_heads=2, mlp_dim=16)
    config.data.update(source="python_topics", length=12)
    return config


def sound() -> ConfigDict:
    """Pieces of 8 samples, in 4 stages of 16 children."""
    config = default_config(objective="ardm", model="ardm_diffwave", data="audio")
    config.objective.update(branching=16, parametrization="direct")
    config.model.update(width=8, embedding_width=2, blocks=1)
    config.data.update(data_dir="clips", length=8)
    return config


def logits(workdir: pathlib.Path, rows: int) -> np.ndarray:
    """The codec's logits of the first stage for the first of so many rows, half of it known."""
    loaded, config, _ = restore_params(workdir)
    with numerics(fast=False):
        method = load(ConfigDict(config)).method
        model = open_model(method, loaded, fast=False, name="tiny")
        rng = np.random.default_rng(0)
        values = rng.integers(0, method.levels, (8, model.positions), np.int32)[:rows]
        known = np.broadcast_to(np.arange(model.positions) % 2 == 0, values.shape)
        step = np.full(rows, model.positions // 2, np.int32)
        return model.network(values, known, step, 0)[0]


def save(config: ConfigDict, workdir: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """A workdir with a checkpoint, whose logits are a few nats."""
    loaded = load(config)
    params = nnx.to_pure_dict(nnx.state(random_module(loaded.method.init, seed)))
    checkpointer = Checkpointer(workdir, keep_last=1, keep_every=0)
    checkpointer.save(1, {"params": params}, to_dict(loaded), "records")
    checkpointer.wait()
    checkpointer.close()
    return workdir
