"""The config that a checkpoint was trained with, as a config file.

Programs that read a checkpoint take `--config.KEY=VALUE` on top of its own config: without
`--config=FILE` they parse this file, with the checkpoint as its argument.
"""

import pathlib
from typing import Any

import ml_collections

from darl_jax import config as config_lib
from darl_jax.evaluators import EVALUATORS
from darl_jax.interchange import described
from darl_jax.interchange.loading import is_run
from darl_jax.training.checkpoint.reading import restore_config
from darl_jax.training.sharding import MeshConfig


def get_config(checkpoint: str) -> ml_collections.ConfigDict:
    """The config of a run's workdir or of an export, for the devices that are here.

    The mesh is the default one, of all devices. The batch is what a step held at once.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: the file holds no config.
    """
    saved = ml_collections.ConfigDict(saved_config(checkpoint))
    config = config_lib.load(saved, begins=False)
    given = config_lib.to_config_dict(config)
    given.mesh = config_lib.to_config_dict(MeshConfig())
    given.batch_size = config.batch_size // config.accumulation_steps
    given.accumulation_steps = 1
    for kind in EVALUATORS:  # so that --config.evaluators.KIND.KEY=VALUE reaches those of evaluate
        if kind not in given.evaluators:
            given.evaluators[kind] = config_lib.evaluator(kind, every_steps=0)
    return given


def saved_config(checkpoint: str) -> dict[str, Any]:
    """The config as saved. Raises as `get_config`."""
    if "://" in checkpoint or is_run(checkpoint):
        return restore_config(checkpoint)
    path = pathlib.Path(checkpoint).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    exported = described.read_config(path if path.is_dir() else path.parent)
    if exported is None:
        raise ValueError(f"{path} holds no config: give --config=FILE")
    return dict(exported["darl_jax_config"])
