"""Times the train step, beside the rate at which the same device multiplies matrices.

    python benchmarks/train_step.py --models=s16 --batch_size=8
    python benchmarks/train_step.py --models=all --objectives=all --data_dir=FOLDER \
        --torch_python=/path/to/torch/bin/python --json=step.json
    python benchmarks/train_step.py --config=configs/cifar10_pretrain.py:small_mse --batch_size=128

The step is the one that training compiles: real model, objective, optimizer, donated state. It is
measured on a random batch that stays on the device, with each attention kernel that runs here, fed
by the input pipeline (--data_dir), and beside a PyTorch model of equal work (--torch_python). All
of them and large square matrix products take turns, because other work on a machine and a
device's clocks affect them all: ratios say more than images/s do. README.md explains the table.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import contestants, step_table
from benchmarks.contestants import load_config
from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.data.images.config import ImagesConfig
from darl_jax.nn.attention import IMPLEMENTATIONS
from darl_jax.nn.blocks import REMAT_POLICIES
from darl_jax.nn.dtypes import DTYPES
from darl_jax.runtime.cli import EXIT_BAD_INPUT, EXIT_ERROR, USER_ERRORS, one_line_errors
from darl_jax.training.sharding import MeshConfig

ALL_MODELS = ("b16", "l16", "h14")
OBJECTIVES = ("mse", "diffusion")
BATCH_SIZES = {"b16": 256, "l16": 256, "h14": 128}  # enough to fill an accelerator
SMALL_BATCH = 8
PROFILED_STEPS = 3
MEMORY_SHARE_BESIDE_TORCH = "0.45"  # of the GPU's memory; PyTorch has half of it


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--models", default="s16", help="such as ti4,s16,b16; all: b16,l16,h14")
    model.add_argument("--config", nargs="+", help="FILE.py or FILE.py:WORD, instead of --models")
    parser.add_argument("--objectives", default="mse", help="mse, diffusion or all")
    parser.add_argument("--image_size", type=int, default=224, help="with --models")
    parser.add_argument("--batch_size", type=int, help="default: 8 on a CPU, else 256 (H: 128)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32 on a CPU")
    parser.add_argument("--remat", choices=list(REMAT_POLICIES))
    parser.add_argument("--unroll", type=int, help="blocks for each iteration of the scan")
    parser.add_argument("--data_dir", help="adds a row fed by the dataset in this folder")
    parser.add_argument("--dataset", default="imagenet2012", help="TFDS name, with --models")
    parser.add_argument("--workers", type=int, help="data workers; default: the config's")
    parser.add_argument("--torch_python", help="Python with PyTorch: adds a row for PyTorch")
    parser.add_argument("--seconds", type=float, default=20.0, help="measuring time of each row")
    parser.add_argument("--profile", help="folder for jax.profiler's trace of some steps")
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args(arguments)


def size_config(model: str, objective: str, image_size: int) -> TrainConfig:
    """A size with a patch, such as 's16', with the patch decoder of Table 8's runs.

    Raises:
      ValueError: the size or the objective is unknown, or patches do not fill the image.
    """
    sizes = {name.lower(): name for name in config_lib.VIT_SIZES}
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)", model.lower())
    if match is None or match[1] not in sizes:
        raise ValueError(f"--models: {model!r} is not one of {', '.join(sizes)} and a patch (s16)")
    if objective not in OBJECTIVES:
        raise ValueError(f"--objectives: {objective!r} is not one of {', '.join(OBJECTIVES)}")
    config = config_lib.default_config(objective, sizes[match[1]])
    config.model.patch_size = int(match[2])
    config.data.image_size = image_size
    if objective == "diffusion":
        config.objective.patch_decoder.update(kind="transformer", layers=1)
    return config_lib.load(config)


def configs(arguments: argparse.Namespace) -> list[tuple[str, TrainConfig]]:
    """Names and configs to measure, with the changes of the command line. Raises ValueError."""
    for flag in ("seconds", "batch_size", "unroll"):
        value = getattr(arguments, flag)
        if value is not None and not value > 0:
            raise ValueError(f"--{flag}={value} must be positive")
    if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
        raise ValueError(f"--json={arguments.json}: its folder does not exist")
    if arguments.config:
        names = [
            pathlib.Path(path).name.replace(".py:", "_").removesuffix(".py")
            for path in arguments.config
        ]
        return [
            (name, _changed(name, load_config(path), arguments))
            for name, path in zip(names, arguments.config, strict=True)
        ]
    models = ALL_MODELS if arguments.models == "all" else arguments.models.split(",")
    objectives = OBJECTIVES if arguments.objectives == "all" else arguments.objectives.split(",")
    return [
        (model, _changed(model, size_config(model, each, arguments.image_size), arguments))
        for model in models
        for each in objectives
    ]


def _changed(name: str, config: TrainConfig, arguments: argparse.Namespace) -> TrainConfig:
    on_cpu = jax.default_backend() == "cpu"
    model = {
        "dtype": arguments.dtype or ("float32" if on_cpu else None),
        "remat": arguments.remat,
        "unroll": arguments.unroll,
    }
    data = {
        "data_dir": arguments.data_dir,
        "dataset": None if arguments.config or not arguments.data_dir else arguments.dataset,
        "num_workers": arguments.workers,
    }
    return dataclasses.replace(
        config,
        batch_size=arguments.batch_size or (SMALL_BATCH if on_cpu else BATCH_SIZES.get(name, 256)),
        model=dataclasses.replace(config.model, **_given(model)),
        data=dataclasses.replace(config.data, **_given(data)),
        mesh=MeshConfig(),
    )


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value is not None}


def with_kernel(config: TrainConfig, name: str) -> TrainConfig:
    """The config with an attention kernel by its own name. Raises ValueError."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=name))
    taken = config.method.kernels(jax.devices()[0])["attention"]
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention=taken))


@dataclasses.dataclass
class Outcome:
    """Rows of a case, and the reasons of rows that were not measured or failed."""

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def run_case(name: str, config: TrainConfig, arguments: argparse.Namespace) -> Outcome:
    """Measures one config. Raises ValueError where a flag is wrong."""
    outcome, title = Outcome(), f"{name} {config.objective.name}"
    contestants.show(f"{title}: compiles")
    config = with_kernel(config, config.model.attention)
    training = contestants.Training(config)
    entries = [training.about]
    steps: list[contestants.Contestant] = [contestants.Resident(training)]
    with contextlib.ExitStack() as cleanup:
        if arguments.data_dir is not None:
            fed = cleanup.enter_context(contestants.Fed(training))
            data = config.data
            assert isinstance(data, ImagesConfig)
            entries.append({"step": f"fed by {data.dataset or data.source}"})
            steps.append(fed)
        reason = contestants.why_no_peer(config)
        if arguments.torch_python and reason:
            outcome.skipped["PyTorch"] = reason
        elif arguments.torch_python:
            contestants.show(f"{title}: PyTorch compiles")
            try:
                peer = contestants.TorchPeer(arguments.torch_python, config, training.parameters)
            except MemoryError as error:
                outcome.failed["PyTorch"] = f"{error}; give a smaller --batch_size"
            else:
                cleanup.enter_context(peer)
                entries.append(peer.about | {"step": f"PyTorch {peer.about['version']}"})
                steps.append(peer)
        for kernel in IMPLEMENTATIONS:
            if kernel in ("auto", config.model.attention):
                continue
            try:
                other = contestants.Training(with_kernel(config, kernel))
            except ValueError as error:
                outcome.skipped[f"attention {kernel}"] = str(error)
                continue
            entries.append(other.about)
            steps.append(contestants.Resident(other))
        matmul = contestants.Matmul(config.model.dtype)
        times = contestants.measure([matmul, *steps], arguments.seconds * (1 + len(steps)))
        if arguments.profile:
            folder = pathlib.Path(arguments.profile) / title.replace(" ", "_")
            with jax.profiler.trace(str(folder)):
                steps[0].run(PROFILED_STEPS)
    common = {
        "model": name,
        "objective": config.objective.name,
        "batch_size": config.batch_size,
        **{key: getattr(config.model, key) for key in ("dtype", "remat", "unroll")},
        "step_flops": config.batch_size * config.method.flops(),
        "matmul_flops": matmul.flops,
        "matmul_seconds": times[0],
    }
    rows = [
        common | entry | {"seconds": seconds}
        for entry, seconds in zip(entries, times[1:], strict=True)
    ]
    outcome.rows = [step_table.with_rates(row, rows[0]) for row in rows]
    return outcome


def measure_all(todo: Sequence[tuple[str, TrainConfig]], arguments: argparse.Namespace) -> bool:
    """Prints the rows one by one, then the summary; returns whether all was measured."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    complete = True
    for name, config in todo:
        try:
            outcome = run_case(name, config, arguments)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            outcome = Outcome(failed={"all": "out of memory; give a smaller --batch_size"})
        for row in outcome.rows:
            print(step_table.line(row), flush=True)
        rows += outcome.rows
        complete &= not outcome.failed
        notes += [
            f"{name} {config.objective.name}: not measured: {what}: {why}"
            for what, why in (outcome.skipped | outcome.failed).items()
        ]
        if arguments.json:  # after each case, because the next may take long or fail
            record = {
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "rows": rows,
                "notes": notes,
            }
            pathlib.Path(arguments.json).write_text(json.dumps(record, indent=1) + "\n")
    first = {(row["model"], row["objective"]): row for row in reversed(rows)}
    print()
    for row in reversed(first.values()):
        print(step_table.rates_line(row))
    for row in rows:
        if "version" in row:
            print(step_table.peer_line(row, first[row["model"], row["objective"]]))
    print("\n".join(notes))
    return complete


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints, and exits with 1 where a row that should run did not."""
    arguments = parse_arguments(argv)
    if arguments.torch_python:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_SHARE_BESIDE_TORCH)
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        todo = configs(arguments)
        model = todo[0][1].model
        print(
            f"{model.dtype}, remat {model.remat}, unroll {model.unroll}, on one "
            f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n{step_table.HEADER}",
            flush=True,
        )
        complete = measure_all(todo, arguments)
    if not complete:
        sys.exit(EXIT_ERROR)


if __name__ == "__main__":
    main()
