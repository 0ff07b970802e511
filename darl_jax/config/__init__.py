"""The config of a run. Nothing behind this package sees a ConfigDict.

A config file starts from `default_config()`, which holds every key there is, and changes some:

    from darl_jax.config import default_config

    def get_config():
        config = default_config(objective="diffusion")
        config.model.width = 1024
        return config
"""

import dataclasses
import runpy

import ml_collections

from darl_jax.config.loading import ConfigError, load, to_config_dict, to_dict
from darl_jax.config.schema import MAY_CHANGE_ON_RESUME, TrainConfig, default_evaluators
from darl_jax.data import DATA
from darl_jax.evaluators import EVALUATORS
from darl_jax.methods import METHODS, MODELS
from darl_jax.methods.images import PatchMethod
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import OPTIMIZERS

__all__ = [
    "MAY_CHANGE_ON_RESUME",
    "ConfigError",
    "TrainConfig",
    "data_config",
    "default_config",
    "evaluator",
    "from_file",
    "load",
    "to_config_dict",
    "to_dict",
]

VIT_SIZES = {
    "Ti": ViTConfig(width=192, depth=12, num_heads=3, mlp_dim=768),
    "S": ViTConfig(width=384, depth=12, num_heads=6, mlp_dim=1536),
    "B": ViTConfig(width=768, depth=12, num_heads=12, mlp_dim=3072),
    "L": ViTConfig(width=1024, depth=24, num_heads=16, mlp_dim=4096),
    "H": ViTConfig(width=1280, depth=32, num_heads=16, mlp_dim=5120),
}


def default_config(
    objective: str = "mse",
    size: str = "B",
    *,
    model: str | None = None,
    data: str = "images",
    optimizer: str = "adamw",
) -> ml_collections.ConfigDict:
    """Every key with its default, for a config file to change.

    Names in METHODS, MODELS, DATA and OPTIMIZERS decide the keys of their groups; the model is the
    method's usual one unless it is named. `size`, a name in VIT_SIZES, is that of a ViT.
    """
    objective_config, method = METHODS[objective]
    evaluators = default_evaluators()
    if not issubclass(method, PatchMethod):
        del evaluators["pictures"]
    model = model or method.default_model
    model_config = VIT_SIZES[size] if model == "vit" else MODELS[model]()
    config = TrainConfig(
        model=dataclasses.replace(model_config, **method.model_defaults),
        objective=objective_config(),
        data=DATA[data](),
        optimizer=OPTIMIZERS[optimizer](),
        evaluators=evaluators,
    )
    return to_config_dict(config)


def evaluator(kind: str, *, every_steps: int = 5000) -> ml_collections.ConfigDict:
    """An entry for `config.evaluators`: every key of a kind of evaluator with its default."""
    return to_config_dict(EVALUATORS[kind](every_steps=every_steps))


def data_config(name: str = "images") -> ml_collections.ConfigDict:
    """A group for `config.data`, or for an evaluator's: every key with its default."""
    return to_config_dict(DATA[name]())


def from_file(path: str) -> ml_collections.ConfigDict:
    """The config of FILE.py or FILE.py:WORD, as the flag --config reads it."""
    file, *word = path.split(":", 1)
    return runpy.run_path(file)["get_config"](*word)
