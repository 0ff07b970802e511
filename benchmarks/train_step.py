"""How fast a train step is, beside how fast the same device multiplies matrices.

    python benchmarks/train_step.py --models=s16 --batch_size=8
    python benchmarks/train_step.py --models=all --objectives=all --data_dir=FOLDER \
        --torch_python=/path/to/torch/bin/python --json=step.json
    python benchmarks/train_step.py --config=configs/cifar10_pretrain.py:small_mse --batch_size=128

The step is the one that training compiles: real model, objective, optimizer, donated state. It is
measured on a random batch that stays on the device, with each attention kernel that runs here, fed
by the input pipeline (--data_dir), and beside a PyTorch model of equal work (--torch_python). All
of them and large square matrix products take turns, because other work on a machine and a
device's clocks touch them all: ratios say more than images/s do. README.md explains the table.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import contestants, step_table
from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.data import pipeline
from darl_jax.data.loader import Batches
from darl_jax.methods import OBJECTIVES, PatchObjective
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn.attention import IMPLEMENTATIONS, choose_implementation
from darl_jax.nn.blocks import DTYPES, REMAT_POLICIES
from darl_jax.runtime.cli import EXIT_BAD_INPUT, EXIT_ERROR, USER_ERRORS, one_line_errors
from darl_jax.training.sharding import MeshConfig

ALL_MODELS = ("b16", "l16", "h14")
# Enough to fill an accelerator; halved until the step fits the device.
BATCH_SIZES = {"b16": 256, "l16": 256, "h14": 128}
SMALL_BATCH = 8
PROFILED_STEPS = 3
# Of the GPU's memory; PyTorch has half of it.
MEMORY_SHARE_BESIDE_TORCH = "0.45"


# Those of pre-training, by name.
PRETRAINING = {
    name: (config, objective)
    for name, (config, objective) in OBJECTIVES.items()
    if issubclass(objective, PatchObjective)
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and objective to be measured.

    Attributes:
      name: of the model or config file.
      config: what is trained.
      halve: whether the batch may be made smaller until it fits.
    """

    name: str
    config: TrainConfig
    halve: bool


class Parser(argparse.ArgumentParser):
    """One line for what is wrong with the flags."""

    def error(self, message: str) -> Any:
        """Raises SystemExit."""
        print(f"error: {message}; --help lists the flags", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--models", default="s16", help="as in ti4,s16,b16; all: b16,l16,h14")
    what.add_argument("--config", help="a config file, instead of --models")
    parser.add_argument("--objectives", default="mse", help=f"of {','.join(PRETRAINING)}, or all")
    parser.add_argument("--image_size", type=int, default=224, help="with --models")
    parser.add_argument("--batch_size", type=int, help="default: what the device has room for")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32 on a CPU")
    parser.add_argument("--remat", choices=list(REMAT_POLICIES))
    parser.add_argument("--unroll", type=int, help="blocks for each iteration of the scan")
    parser.add_argument("--data_dir", help="feeds a step from the data set in this folder, too")
    parser.add_argument("--dataset", default="imagenet2012", help="TFDS name, with --models")
    parser.add_argument("--workers", type=int, help="data workers; default: the config's")
    parser.add_argument("--torch_python", help="a Python that has PyTorch: measures that, too")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, for each row")
    parser.add_argument("--profile", help="a folder for jax.profiler's trace of some steps")
    parser.add_argument("--json", help="a file for the rows")
    return parser.parse_args(arguments)


def load_config(path: str) -> TrainConfig:
    """The config of FILE.py or FILE.py:WORD.

    Raises:
      ValueError: there is no such file or word.
    """
    if not pathlib.Path(path.split(":")[0]).is_file():
        raise ValueError(f"--config={path}: there is no such file; configs/ holds some")
    return config_lib.load(config_lib.from_file(path))


def size_config(model: str, objective: str, image_size: int) -> TrainConfig:
    """A size with a patch, such as 's16', with the decoder of Table 8's runs.

    Raises:
      ValueError: no such size or objective.
    """
    sizes = {name.lower(): vit for name, vit in config_lib.VIT_SIZES.items()}
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)", model.lower())
    if match is None or match[1] not in sizes:
        raise ValueError(f"--models: {model!r} is not one of {', '.join(sizes)} and a patch (s16)")
    if objective not in PRETRAINING:
        raise ValueError(f"--objectives: {objective!r} is not one of {', '.join(PRETRAINING)}")
    if image_size < 1 or image_size % int(match[2]):
        raise ValueError(f"--image_size={image_size} must be a multiple of {model}'s patch")
    decoder = PatchDecoderConfig()
    if PRETRAINING[objective][1].denoising:
        decoder = PatchDecoderConfig(kind="transformer", layers=1)
    default = TrainConfig()
    return dataclasses.replace(
        default,
        model=dataclasses.replace(sizes[match[1]], patch_size=int(match[2])),
        patch_decoder=decoder,
        objective=PRETRAINING[objective][0](),
        data=dataclasses.replace(default.data, image_size=image_size),
    )


def cases(arguments: argparse.Namespace) -> list[Case]:
    """What is measured, as the command line would have it computed. Raises ValueError."""
    for flag in ("seconds", "batch_size", "unroll"):
        value = getattr(arguments, flag)
        if value is not None and not value > 0:
            raise ValueError(f"--{flag}={value} must be positive")
    if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
        raise ValueError(f"--json={arguments.json}: there is no folder for this file")
    if arguments.config:
        name = pathlib.Path(arguments.config).name.replace(".py:", "_").removesuffix(".py")
        found = [(name, load_config(arguments.config))]
    else:
        models = ALL_MODELS if arguments.models == "all" else arguments.models.split(",")
        every = arguments.objectives == "all"
        objectives = list(PRETRAINING) if every else arguments.objectives.split(",")
        found = [
            (model, size_config(model, objective, arguments.image_size))
            for model in models
            for objective in objectives
        ]
    return [_case(name, config, arguments) for name, config in found]


def _case(name: str, config: TrainConfig, arguments: argparse.Namespace) -> Case:
    changes = {
        key: getattr(arguments, key)
        for key in ("dtype", "remat", "unroll")
        if getattr(arguments, key) is not None
    }
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        changes.setdefault("dtype", "float32")
    data = config.data
    if arguments.data_dir is not None:
        data = dataclasses.replace(data, data_dir=arguments.data_dir)
        if not arguments.config:
            data = dataclasses.replace(data, name=arguments.dataset)
    if arguments.workers is not None:
        data = dataclasses.replace(data, num_workers=arguments.workers)
    default = SMALL_BATCH if on_cpu else BATCH_SIZES.get(name, 256)
    config = dataclasses.replace(
        config,
        batch_size=arguments.batch_size or default,
        model=dataclasses.replace(config.model, **changes),
        data=data,
        mesh=MeshConfig(),
    )
    return Case(name, config, halve=arguments.batch_size is None)


def kernels(config: TrainConfig) -> tuple[str, list[str], dict[str, str]]:
    """The attention kernel that training takes, the others that run here, and why the rest do not.

    Raises:
      ValueError: the config asks for one that does not run.
    """

    def choose(name: str) -> str:
        return choose_implementation(
            name,
            device=jax.devices()[0],
            dtype=config.model.dtype,
            head_dim=config.model.head_dim,
            tokens=config.method.grid[0] * config.method.grid[1],
        )

    taken, others, reasons = choose(config.model.attention), [], {}
    for name in IMPLEMENTATIONS:
        try:
            if name == choose(name) != taken:
                others.append(name)
        except ValueError as error:
            reasons[f"attention {name}"] = str(error)
    return taken, others, reasons


def compile_fitting(
    case: Case, limit: int | None
) -> tuple[contestants.Training, jax.stages.Compiled]:
    """The step, on a batch that is halved until it fits where the case allows it."""
    config = case.config
    while True:
        training = contestants.Training(config)
        compiled = training.compile()
        fits = limit is None or contestants.memory_of(compiled) <= limit
        if fits or not case.halve or config.batch_size == 1:
            return training, compiled
        config = dataclasses.replace(config, batch_size=config.batch_size // 2)


@dataclasses.dataclass
class Outcome:
    """What came of a case: rows, what cannot run here, and what should have run and did not."""

    rows: list[dict[str, Any]]
    skipped: dict[str, str]
    failed: dict[str, str]


def run_case(case: Case, arguments: argparse.Namespace) -> Outcome:
    """Measures a case. Raises ValueError where a flag is wrong."""
    taken, others, skipped = kernels(case.config)
    failed: dict[str, str] = {}
    # Said in so many words, so that every row names its kernel.
    model = dataclasses.replace(case.config.model, attention=taken)
    case = dataclasses.replace(case, config=dataclasses.replace(case.config, model=model))
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    contestants.tell(f"{case.name} {case.config.objective.name}: compiles")
    began = time.perf_counter()
    training, compiled = compile_fitting(case, limit)
    config = training.config
    about = [_about(f"attention {taken}", compiled, began)]
    steps: list[contestants.Contestant] = [contestants.Resident(training, compiled)]
    with contextlib.ExitStack() as cleanup:
        if arguments.data_dir is not None:
            batches = cleanup.enter_context(open_batches(config))
            about.append({"step": f"fed by {config.data.dataset or config.data.source}"})
            steps.append(contestants.Fed(training, compiled, batches))
        reason = contestants.why_no_peer(config)
        if arguments.torch_python and reason:
            skipped["PyTorch"] = reason
        elif arguments.torch_python:
            contestants.tell(f"{case.name} {case.config.objective.name}: PyTorch compiles")
            try:
                peer = contestants.TorchPeer(arguments.torch_python, config, training.parameters)
            except MemoryError as error:
                failed["PyTorch"] = f"{error}; give a smaller --batch_size"
            else:
                cleanup.enter_context(peer)
                about.append(peer.about | {"step": f"PyTorch {peer.about['version']}"})
                steps.append(peer)
        for name in others:
            model = dataclasses.replace(config.model, attention=name)
            began = time.perf_counter()
            other = contestants.Training(dataclasses.replace(config, model=model)).compile()
            needed = contestants.memory_of(other)
            if limit is not None and needed > limit:
                failed[f"attention {name}"] = f"needs {needed / 2**30:.1f} GiB; too much memory"
                continue
            about.append(_about(f"attention {name}", other, began))
            steps.append(contestants.Resident(training, other))
        training.allocate()
        matmul = contestants.Matmul(config.model.dtype)
        times = contestants.measure([matmul, *steps], arguments.seconds * (1 + len(steps)))
        if arguments.profile:
            folder = pathlib.Path(arguments.profile) / f"{case.name}_{config.objective.name}"
            with jax.profiler.trace(str(folder)):
                steps[0].run(PROFILED_STEPS)
    common = {
        "model": case.name,
        "objective": config.objective.name,
        "batch_size": config.batch_size,
        **{key: getattr(config.model, key) for key in ("dtype", "remat", "unroll")},
        "step_flops": config.batch_size * config.method.flops(),
        "matmul_flops": matmul.flops,
        "matmul_seconds": times[0],
    }
    rows = [
        common | entry | {"seconds": seconds}
        for entry, seconds in zip(about, times[1:], strict=True)
    ]
    return Outcome([step_table.with_rates(row, rows[0]) for row in rows], skipped, failed)


def _about(step: str, compiled: jax.stages.Compiled, began: float) -> dict[str, Any]:
    return {
        "step": step,
        "compile_seconds": time.perf_counter() - began,
        "memory_bytes": contestants.memory_of(compiled),
    }


def open_batches(config: TrainConfig) -> Batches:
    """What training would be fed with."""
    return pipeline.train_batches(
        config.data.open().train,
        config.data,
        batch_size=config.batch_size,
        seed=0,
        start_step=0,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine, has too little memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def measure_all(todo: Sequence[Case], arguments: argparse.Namespace) -> bool:
    """Prints the rows as they come, then what else there is to say; whether all was measured."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    complete = True
    for case in todo:
        try:
            outcome = run_case(case, arguments)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            outcome = Outcome([], {}, {"all": "out of memory; give a smaller --batch_size"})
        for row in outcome.rows:
            print(step_table.line(row), flush=True)
        rows += outcome.rows
        complete &= not outcome.failed
        notes += [
            f"{case.name} {case.config.objective.name}: not measured: {what}: {why}"
            for what, why in (outcome.skipped | outcome.failed).items()
        ]
        if arguments.json:  # after each, for the next may take long or fail
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
    for note in notes:
        print(note)
    return complete


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints, and exits with 1 where something that should run did not."""
    arguments = parse_arguments(argv)
    if arguments.torch_python:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_SHARE_BESIDE_TORCH)
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        todo = cases(arguments)
        model = todo[0].config.model
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
