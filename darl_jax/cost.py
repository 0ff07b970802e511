"""Prints the cost of configs: parameters, FLOPs, and accelerator-hours of the run.

    python -m darl_jax.cost --config=configs/darl_vit_l16_mse.py
    python -m darl_jax.cost configs/darl_vit_*.py configs/darl_vit_l16_positions.py:rope1d

One row for each config. FLOPs are those of the model, forward and backward, by the convention of
darl_jax/nn/flops.py; plan.py counts those of the compiled step. Hours are those of one accelerator
at half of its dense bfloat16 peak, without evaluation: divide by the number of accelerators. No
accelerator is needed, and no well-known dataset. Exit codes: 0; 2 for a config that cannot be used.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags
from flax import nnx
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.planning.records import training_records, with_classes
from darl_jax.planning.tables import align, digits, si
from darl_jax.runtime import cli
from darl_jax.runtime.chips import CHIPS
from darl_jax.training.state import parameters

_USAGE = "python -m darl_jax.cost --config=configs/darl_vit_l16_mse.py"
_UTILIZATION = 0.5

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; --config.KEY=VALUE overrides any of its keys."
)
_CHIPS = flags.DEFINE_multi_enum(
    "chip", ["h100", "v4", "v5e", "v5p"], list(CHIPS), "Accelerator with a column; repeat for more."
)
_RECORDS = flags.DEFINE_integer(
    "records",
    None,
    "Number of training records, where the dataset is neither present nor known (imagenet2012, "
    "cifar10, digits).",
    lower_bound=1,
)


def main(argv: Sequence[str]) -> None:
    """Prints the table, and exits with one of the codes above."""
    with cli.one_line_errors(cli.EXIT_BAD_INPUT, *cli.BAD_INPUT):
        named = {path: config_lib.from_file(path) for path in argv[1:]}
        if _CONFIG.value is not None:
            flag: Any = flags.FLAGS["config"]
            named = {flag.config_filename: _CONFIG.value} | named
        if not named:
            raise ValueError(f"a config is needed; usage: {_USAGE}")
        rows = [header(_CHIPS.value)]
        for name, values in named.items():
            try:
                config = with_classes(config_lib.load(values, begins=False))
                rows.append(row(name, config, _RECORDS.value, _CHIPS.value))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        print("\n".join(align(rows)))


def header(chips: Sequence[str]) -> list[str]:
    """Returns the names of the columns of `row`."""
    hours = [f"{chip} hours" for chip in chips]
    return ["config", "parameters", "FLOPs/example", "steps", "epochs", "FLOPs of the run", *hours]


def row(name: str, config: TrainConfig, records: int | None, chips: Sequence[str]) -> list[str]:
    """Returns the costs of a config as cells of a table; `records` None counts the dataset's.

    Raises:
      ValueError: the number of records is not known.
    """
    records, _ = training_records(config, records)
    steps = config.steps(records)
    flops = config.method.flops()
    total = flops * steps * config.batch_size
    return [
        name,
        si(count_parameters(config)),
        si(flops),
        f"{steps:,}",
        f"{steps * config.batch_size / records:.4g}",
        si(total),
        *(digits(hours(total, chip)) for chip in chips),
    ]


def count_parameters(config: TrainConfig) -> int:
    """Returns the number of parameters of the model in training, decoders and heads included."""
    shapes = jax.eval_shape(lambda: parameters(config.method.init(nnx.Rngs(0))))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def hours(flops: float | int, chip: str) -> float:
    """Returns the hours of FLOPs on one chip at half of its dense bfloat16 peak."""
    return flops / (_UTILIZATION * CHIPS[chip].peak_bf16_flops) / 3600


if __name__ == "__main__":
    app.run(main, flags_parser=cli.flags_parser(_USAGE, arguments=True))
