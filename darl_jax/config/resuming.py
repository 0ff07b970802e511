"""Whether a run may go on from a checkpoint."""

from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from darl_jax.config.loading import ConfigError
from darl_jax.config.schema import MAY_CHANGE_ON_RESUME
from darl_jax.training.checkpoint import config_differences

# Machines may have the data elsewhere, and other numbers of cores.
_OWN_DATA_KEYS = ("data_dir", "num_workers", "worker_timeout_seconds")


def check_same_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], workdir: epath.Path
) -> None:
    """Whether a checkpoint's run is this one, by what was saved with it.

    Raises:
      ConfigError: they differ in what is learned from which examples in which order.
    """
    differences = config_differences(saved, current, MAY_CHANGE_ON_RESUME)
    if differences:
        raise ConfigError(
            f"{workdir} holds a checkpoint of another run: {'; '.join(differences)}. Give these "
            "keys their old values to go on with it, or another --workdir to start anew"
        )
    for difference in config_differences(saved, current, ()):
        logging.info("Changed since the checkpoint: %s", difference)


def without_own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config without what each process of a run may have for itself."""
    data = {key: value for key, value in config["data"].items() if key not in _OWN_DATA_KEYS}
    return {**config, "data": data}


def check_length(start_step: int, total_steps: int, workdir: epath.Path) -> None:
    """Whether a checkpoint lies within the run. Raises ConfigError."""
    if start_step > total_steps:
        raise ConfigError(
            f"{workdir} has a checkpoint of step {start_step}, and the config ends at step "
            f"{total_steps}; raise config.total_steps or give another --workdir"
        )
