"""Evaluates a checkpoint: loss and accuracy, pictures, probes, k-NN, likelihood.

    python -m darl_jax.evaluate --checkpoint=runs/digits
    python -m darl_jax.evaluate --checkpoint=runs/digits --evaluators=likelihood,knn
    python -m darl_jax.evaluate --checkpoint=runs/b16 --config.data.data_dir=~/other

The checkpoint is a run's workdir, an export, or another framework's file (docs/export.md). Its own
config is used, on the devices that are here, with each --config.KEY=VALUE; --config=FILE takes
another one. Evaluators are those of the config, or those that --evaluators names: a name of
config.evaluators, or a kind with its default keys. If the run keeps an average of its parameters,
the average is evaluated. Exit codes: 0 done; 1 an error while it ran; 2 a flag, config, dataset or
checkpoint that cannot be used.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from absl import flags
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.config import ConfigError, TrainConfig
from darl_jax.evaluators import EVALUATORS
from darl_jax.evaluators.base import Context, EvaluatorConfig
from darl_jax.evaluators.integer_samples import IntegerSamplesConfig
from darl_jax.evaluators.pictures import PicturesConfig
from darl_jax.evaluators.samples import SamplesConfig
from darl_jax.evaluators.schedule import Evaluation
from darl_jax.interchange.initialization import restored_params
from darl_jax.interchange.loading import LoadedModel, load_model
from darl_jax.monitoring.writers import MetricWriter
from darl_jax.runtime import cli
from darl_jax.training.checkpoint import absolute_path
from darl_jax.training.sharding import check_batch, make_mesh
from darl_jax.training.state import create_params, graph_definition

_USAGE = "python -m darl_jax.evaluate --checkpoint=runs/digits"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; without it the checkpoint's own config is used."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run's workdir, an export, or another framework's file."
)
_STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; by default the newest.")
_EVALUATORS = flags.DEFINE_list(
    "evaluators", [], "Names in config.evaluators, or kinds: " + ", ".join(EVALUATORS) + "."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for metrics.jsonl and pictures; by default nothing is written."
)


def chosen(
    configs: Mapping[str, EvaluatorConfig], names: Sequence[str], *, pictures: bool
) -> dict[str, EvaluatorConfig]:
    """The evaluators to run.

    Args:
      configs: the config's evaluators by name.
      names: of these, or kinds; empty for all that the config runs.
      pictures: whether pictures have a folder; evaluators of pictures alone are left out if not.

    Raises:
      ConfigError: a name is unknown, nothing is left, or a picture has no folder.
    """
    found = {name: each for name, each in configs.items() if each.every_steps} if not names else {}
    for name in names:
        if name not in configs and name not in EVALUATORS:
            raise ConfigError(
                f"--evaluators has {name!r}; choose from {', '.join({**configs, **EVALUATORS})}"
            )
        config = configs[name] if name in configs else EVALUATORS[name]()
        found[name] = dataclasses.replace(config, every_steps=1)
    pictured = PicturesConfig | SamplesConfig | IntegerSamplesConfig
    drawing = [n for n, each in found.items() if isinstance(each, pictured)]
    if not pictures:
        if named := [name for name in drawing if name in names]:
            raise ConfigError(f"--evaluators={named[0]} needs a --workdir for its pictures")
        found = {name: each for name, each in found.items() if name not in drawing}
    if not found:
        raise ConfigError(
            "the config has no evaluator to run; name some with "
            f"--evaluators={','.join(EVALUATORS)}"
        )
    return found


def evaluate(
    config: TrainConfig,
    loaded: LoadedModel,
    evaluators: Mapping[str, EvaluatorConfig],
    workdir: str | None,
) -> dict[str, float]:
    """Runs evaluators on a checkpoint.

    Args:
      config: of the model and the data.
      loaded: the checkpoint.
      evaluators: by name.
      workdir: folder for metrics and pictures; None writes nothing.

    Returns:
      The numbers by name.

    Raises:
      ConfigError: the checkpoint does not fit the config.
      ValueError: the data does not suit an evaluator.
    """
    mesh = make_mesh(config.mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = shards * math.ceil(config.batch_size // config.accumulation_steps / shards)
    check_batch(batch_size, 1, mesh)
    with jax.set_mesh(mesh):
        splits = config.data.open()
        config = config.resolved(splits.train)
        method = config.method
        method.check_mesh(mesh)
        init_key, _, key = jax.random.split(jax.random.key(config.seed), 3)
        context = Context(
            method=method,
            graphdef=graph_definition(method.init),
            data=config.data,
            splits=splits,
            batch_size=batch_size,
            mesh=mesh,
            key=key,
            initial_params=lambda: create_params(method.init, init_key, mesh),
        )
        evaluation = Evaluation(evaluators, context)
        params = restored_params(
            config,
            loaded,
            mesh,
            backbone_only=all(each.backbone_only for each in evaluators.values()),
        )
        folder = absolute_path(workdir) if workdir else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        writer = MetricWriter(folder or "", active=folder is not None)
        try:
            return evaluation.run(params, loaded.step or 0, writer, last=True)
        finally:
            writer.close()


def main() -> None:
    """Evaluates, and prints the numbers."""
    if not _CHECKPOINT.value:
        raise ValueError(f"--checkpoint is needed; usage: {_USAGE}")
    config = config_lib.load(_CONFIG.value, begins=False)
    evaluators = chosen(config.evaluators, _EVALUATORS.value, pictures=bool(_WORKDIR.value))
    loaded = load_model(_CHECKPOINT.value, _STEP.value)
    numbers = evaluate(config, loaded, evaluators, _WORKDIR.value)
    width = max(map(len, numbers), default=0)
    for name, value in numbers.items():
        print(f"{name:<{width}}  {value:.5f}")


if __name__ == "__main__":
    cli.run(main, _USAGE)
