"""Asks a checkpoint the questions of a config: loss and accuracy, pictures, probes, k-NN.

    python -m darl_jax.evaluate --config=configs/digits.py --checkpoint=runs/digits

The evaluators are those that the config runs (their every_steps is not 0) on its validation split,
or those that --evaluators names. The checkpoint is a run's workdir, an export, or another
framework's file (docs/export.md). Without --config a run's own config is taken, which lets nothing
be overridden. Of a run that keeps an average of its parameters the average is evaluated. Exit
codes: 0 done; 1 an error while it ran; 2 a flag, config, dataset or checkpoint that cannot be used.
"""

import logging as logging_lib

from absl import app, flags
from ml_collections import config_flags

from darl_jax.evaluators.schedule import EVALUATORS, asked, evaluate_checkpoint, read_config
from darl_jax.interchange.loading import load_model
from darl_jax.runtime.cli import (
    BAD_INPUT,
    EXIT_BAD_INPUT,
    EXIT_ERROR,
    advice_on_memory,
    flags_parser,
    one_line_errors,
)

_USAGE = "python -m darl_jax.evaluate --config=configs/digits.py --checkpoint=runs/digits"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file; any key of it can be overridden as --config.key=value."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, an export, or another framework's file."
)
_STEP = flags.DEFINE_integer("step", None, "Of a run's checkpoints; the newest if not given.")
_EVALUATORS = flags.DEFINE_list(
    "evaluators", [], f"Of {', '.join(EVALUATORS)}; those that the config runs if not given."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where metrics.jsonl and pictures go; nowhere if not given."
)


def main(argv: list[str]) -> None:
    """Evaluates, and exits with one of the codes above."""
    del argv
    logging_lib.getLogger("jax._src.xla_bridge").setLevel(logging_lib.WARNING)
    with one_line_errors(EXIT_ERROR, OSError), one_line_errors(EXIT_BAD_INPUT, *BAD_INPUT):
        if not _CHECKPOINT.value:
            raise ValueError(f"--checkpoint is needed; usage: {_USAGE}")
        loaded = load_model(_CHECKPOINT.value, _STEP.value)
        config = asked(
            read_config(_CONFIG.value, loaded), _EVALUATORS.value, pictures=bool(_WORKDIR.value)
        )
        with advice_on_memory():
            numbers = evaluate_checkpoint(config, loaded, _WORKDIR.value)
    width = max(map(len, numbers), default=0)
    for name, value in numbers.items():
        print(f"{name:<{width}}  {value:.5f}")


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser(_USAGE))
