"""Checkpoints by Orbax: asynchronous, atomic, verified, readable without the writer's code."""

from darl_jax.training.checkpoint.reading import (
    DamagedCheckpointError,
    absolute_path,
    restore_config,
    restore_params,
    restore_records,
    writable_path,
)
from darl_jax.training.checkpoint.saving import Check, Checkpointer, SaveTimeoutError

__all__ = [
    "Check",
    "Checkpointer",
    "DamagedCheckpointError",
    "SaveTimeoutError",
    "absolute_path",
    "restore_config",
    "restore_params",
    "restore_records",
    "writable_path",
]
