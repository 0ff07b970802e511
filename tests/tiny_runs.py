"""Whole runs on digits, small enough for a test, and what they saved."""

import os
import signal
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from darl_jax import train
from darl_jax.config import TrainConfig, default_config, evaluator, load
from darl_jax.runtime import cluster
from darl_jax.runtime.signals import StopRequest
from darl_jax.training.checkpoint import Checkpointer
from darl_jax.training.optimizers import build_optimizer
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import abstract_state

# Changes of `tiny` for a run of diffusion, and for one that fine-tunes.
DIFFUSION: dict[str, Any] = {
    "objective": "diffusion",
    "model__patch_size": 2,
    "objective__sampler__steps": 4,
    "objective__schedule__a": 0.3,
}
FINE_TUNING: dict[str, Any] = {
    "objective": "classification",
    "model__drop_path": 0.2,
    "objective__mixing__mixup": 0.8,
    "objective__mixing__cutmix": 1.0,
    "objective__mixing__erasing_probability": 0.25,
    "optimizer__base_learning_rate": None,
    "optimizer__learning_rate": 3e-3,
    "optimizer__layer_decay": 0.75,
    "ema_decay": 0.9,
}


def tiny(
    objective: str = "mse", optimizer: str = "adamw", kinds: Sequence[str] = (), **changes
) -> TrainConfig:
    """A run on digits that takes a second once it is compiled.

    Args:
      objective: a name in METHODS.
      optimizer: a name in OPTIMIZERS.
      kinds: evaluators that run at step 12 and have their kinds as names.
      changes: keys with `__` for dots.
    """
    config = default_config(objective=objective, optimizer=optimizer)
    config.batch_size = 32
    config.total_steps, config.total_epochs = 12, None
    config.log_every_steps = 4
    config.model.update(width=32, depth=2, num_heads=2, mlp_dim=64, patch_size=4, dtype="float32")
    config.data.update(
        source="digits", image_size=8, channels=1, mean=(0.3,), std=(0.4,), flip=False,
        crop_scale=(0.5, 1.0), eval_crop=1.0, in_memory=True,
    )  # fmt: skip
    config.optimizer.update(base_learning_rate=1e-2, warmup_steps=2, warmup_epochs=None)
    config.checkpoint.update(every_steps=4, keep_last=2)
    config.evaluators.validation.every_steps = 6
    if "pictures" in config.evaluators:
        config.evaluators.pictures.every_steps = 0
    for kind in kinds:
        config.evaluators[kind] = evaluator(kind, every_steps=12)
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return load(config)


def run(config, workdir) -> int:
    with StopRequest(cluster.leave_together) as stop:
        return train.train(config, epath.Path(workdir), stop)


def refused(config, workdir, capsys, code: int = 2) -> str:
    """The message with which a run leaves, with this exit code."""
    with pytest.raises(SystemExit) as left:
        run(config, workdir)
    assert left.value.code == code
    return capsys.readouterr().err


def stopped(config, workdir) -> None:
    """A run that gets SIGTERM at step 4, and saves."""
    add = train.StepMetrics.add

    def stop_at_step_4(self, step, metrics):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        add(self, step, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.StepMetrics, "add", stop_at_step_4)
        assert run(config, workdir) == 75


def saved_state(workdir, config) -> dict[str, np.ndarray]:
    """The last checkpoint's arrays by name, read as whoever wrote it does not matter."""
    checkpointer = Checkpointer(workdir, keep_last=2, keep_every=0)
    config = config.resolved(config.data.open().train)
    abstract = abstract_state(
        config.method.init,
        build_optimizer(config.optimizer, lambda step: 0.0 * step, config.method),
        make_mesh(MeshConfig()),
        ema=config.ema_decay > 0,
    )
    state, _ = checkpointer.restore_latest(abstract)
    checkpointer.close()
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)
