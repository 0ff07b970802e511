"""Checks whether a run may continue from a checkpoint."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath
from flax import traverse_util

from darl_jax.config.loading import ConfigError
from darl_jax.config.schema import MAY_CHANGE_ON_RESUME

# Machines may have the data elsewhere, and other numbers of cores.
_OWN_DATA_KEYS = ("data_dir", "num_workers", "worker_timeout_seconds")


def check_same_run(
    current: Mapping[str, Any],
    records: str,
    total_steps: int,
    workdir: epath.Path,
    saved: Mapping[str, Any],
    saved_records: str,
    step: int,
) -> None:
    """Compares config and records of this run with those of a checkpoint of a step.

    Raises:
      ConfigError: the records or a key differ that decide on the result, or this run is shorter.
    """
    differences = config_differences(saved, current, MAY_CHANGE_ON_RESUME)
    if saved_records != records:
        differences.append(f"training records: {saved_records} in the checkpoint, {records} now")
    if differences:
        raise ConfigError(
            f"{workdir} holds a checkpoint of another run: {'; '.join(differences)}. Set these "
            "keys to their old values to continue it, or another --workdir to start anew"
        )
    if step > total_steps:
        raise ConfigError(
            f"{workdir} has a checkpoint of step {step}, and the config ends at step "
            f"{total_steps}; raise config.total_steps or give another --workdir"
        )
    for difference in config_differences(saved, current, ()):
        logging.info("Changed since the checkpoint: %s", difference)


def without_own_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config without the keys that may differ between the processes of a run."""
    data = {key: value for key, value in config["data"].items() if key not in _OWN_DATA_KEYS}
    return {**config, "data": data}


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], may_change: Sequence[str]
) -> list[str]:
    """Lines such as "model.width: 384 in the checkpoint, 768 now"; lists equal tuples.

    Keys of `may_change`, with all keys below them, are left out.
    """
    old, new = (
        traverse_util.flatten_dict(json.loads(json.dumps(config)), sep=".")
        for config in (saved, current)
    )
    lines = []
    for key in sorted(old.keys() | new.keys()):
        if any(key == entry or key.startswith(f"{entry}.") for entry in may_change):
            continue
        if key in old and key in new and old[key] == new[key]:
            continue
        before = repr(old[key]) if key in old else "absent"
        now = repr(new[key]) if key in new else "absent"
        lines.append(f"{key}: {before} in the checkpoint, {now} now")
    return lines
