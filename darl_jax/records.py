"""Prints the records that training steps learn from, a line of JSON for each step.

    python -m darl_jax.records --config=configs/digits.py --first_step=1 --last_step=3
    python -m darl_jax.records --checkpoint=runs/digits --first_step=500 --files

Records are a pure function of config and step, so that a run does not write them down: they are
those of any run of this config, on any number of processes. --checkpoint takes the config of a run.
Exit codes: 0 done; 2 a flag, config or dataset that cannot be used.
"""

import json
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.data import pipeline
from darl_jax.runtime import cli

_USAGE = "python -m darl_jax.records --config=configs/digits.py --first_step=1 --last_step=3"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of the run; --config.KEY=VALUE overrides a key."
)
flags.DEFINE_string("checkpoint", None, "A run's workdir, whose config is used without --config.")
_FIRST_STEP = flags.DEFINE_integer("first_step", 1, "First step, counted from 1.")
_LAST_STEP = flags.DEFINE_integer("last_step", None, "Last step; by default the first one.")
_FILES = flags.DEFINE_bool("files", False, "Print the file of each record, too.")


def lines(config: TrainConfig, steps: range, *, files: bool) -> Iterator[dict[str, Any]]:
    """Records of steps, in the order of the global batch.

    Args:
      config: of the run.
      steps: counted from 1.
      files: whether to name the file of each record.

    Raises:
      ValueError: the config names data that does not exist.
    """
    split = config.data.open().train
    for step in steps:
        index = pipeline.records_of_step(
            split, batch_size=config.batch_size, seed=config.seed, step=step
        )
        names = {"files": [split.describe(index[i : i + 1]) for i in range(len(index))]}
        yield {"step": step, "records": index.tolist()} | (names if files else {})


def main() -> None:
    """Prints the lines."""
    if _CONFIG.value is None:
        raise ValueError(f"--config or --checkpoint is needed; usage: {_USAGE}")
    first = _FIRST_STEP.value
    last = first if _LAST_STEP.value is None else _LAST_STEP.value
    if not 1 <= first <= last:
        raise ValueError(
            f"--first_step={first} must be at least 1 and no more than --last_step={last}"
        )
    config = config_lib.load(_CONFIG.value, begins=False)
    for line in lines(config, range(first, last + 1), files=_FILES.value):
        print(json.dumps(line))


if __name__ == "__main__":
    cli.run(main, _USAGE)
