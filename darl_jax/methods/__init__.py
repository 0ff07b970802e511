"""Methods: a folder for each, all behind the contract in base.py."""

from typing import Any

from darl_jax.data.base import Features
from darl_jax.methods.aim.objective import AIMConfig, AIMMethod
from darl_jax.methods.ardm.method import ARDM, ARDMConfig
from darl_jax.methods.ardm.networks import NETWORKS
from darl_jax.methods.base import Batch, Method, Metrics, ObjectiveConfig
from darl_jax.methods.darl.diffusion import Diffusion, DiffusionConfig
from darl_jax.methods.darl.mse import MSE, MSEConfig
from darl_jax.methods.mae.method import MAEConfig, MAEMethod
from darl_jax.methods.nepa.next_embedding import NextEmbedding, NextEmbeddingConfig
from darl_jax.methods.transfer.classification import Classification, ClassificationConfig
from darl_jax.methods.transfer.probe_model import ProbesConfig
from darl_jax.methods.transfer.probes import ProbeMethod
from darl_jax.nn.vit import ViTConfig

# config.objective.name -> (config of the group, method)
METHODS: dict[str, tuple[type[ObjectiveConfig], type[Method[Any]]]] = {
    "mse": (MSEConfig, MSE),
    "diffusion": (DiffusionConfig, Diffusion),
    "next_embedding": (NextEmbeddingConfig, NextEmbedding),
    "aim": (AIMConfig, AIMMethod),
    "mae": (MAEConfig, MAEMethod),
    "ardm": (ARDMConfig, ARDM),
    "classification": (ClassificationConfig, Classification),
    "probes": (ProbesConfig, ProbeMethod),
}

# config.model.name -> config of the group
MODELS: dict[str, type] = {"vit": ViTConfig, **NETWORKS}

__all__ = ["METHODS", "MODELS", "Batch", "Features", "Method", "Metrics", "ObjectiveConfig"]
