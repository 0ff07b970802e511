"""Checkpoints by Orbax: asynchronous, atomic, checked, readable without the code of the writer."""

from darl_jax.training.checkpoint.reading import (
    DamagedCheckpointError,
    absolute_path,
    restore_config,
    restore_params,
)
from darl_jax.training.checkpoint.saving import Checkpointer, SaveTimeoutError, config_differences

__all__ = [
    "Checkpointer",
    "DamagedCheckpointError",
    "SaveTimeoutError",
    "absolute_path",
    "config_differences",
    "restore_config",
    "restore_params",
]
