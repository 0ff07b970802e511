"""Compiles a config's train step for devices that are not here, and prints what it would take.

    python -m darl_jax.plan --config=configs/darl_vit_b16_mse.py --topology=v5e:16x16

The step is the one that the program runs. With --sweep several meshes and rematerialization
policies are compared. Exit codes: 0 a plan that fits; 1 the step does not fit the memory of the
chips, or it could not be compiled; 2 a config or topology that cannot be used. docs/planning.md
says what is assumed.
"""

import dataclasses
import json
import logging as logging_lib
import re
from typing import Any

from absl import app, flags
from etils import epath
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.planning import sweep
from darl_jax.planning.roofline import Roofline, gib
from darl_jax.planning.step_memory import DoesNotFitError
from darl_jax.planning.step_plan import (
    StepPlan,
    align,
    compile_plan,
    to_stderr,
    training_images,
)
from darl_jax.planning.topology import VALID_FORMS, open_topology
from darl_jax.runtime.cli import EXIT_BAD_INPUT, EXIT_ERROR, flags_parser, one_line_errors

_USAGE = "python -m darl_jax.plan --config=configs/darl_vit_b16_mse.py --topology=v5e:16x16"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file; any key of it can be overridden as --config.key=value."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, f"The devices: {VALID_FORMS}.")
_TRAIN_IMAGES = flags.DEFINE_integer(
    "train_images", None, "Records of the training split, where the dataset is not here."
)
_SWEEP = flags.DEFINE_bool("sweep", False, "Compare meshes and rematerialization policies.")
_COMPILE_TOP = flags.DEFINE_integer(
    "compile_top", 3, "With --sweep: how many of the candidates are compiled."
)
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", [], "With --sweep: batch sizes to try; they change what is learned."
)
_ACCUMULATIONS = flags.DEFINE_list(
    "accumulations", [], "With --sweep: accumulation_steps to try; diffusion draws other noise."
)
_JSON = flags.DEFINE_string("json", None, "A file that the plan is written to as JSON.")


def main(argv: list[str]) -> None:
    """Plans, and exits with one of the codes above."""
    del argv
    logging_lib.getLogger("jax._src.xla_bridge").setLevel(logging_lib.WARNING)
    with one_line_errors(EXIT_ERROR, DoesNotFitError, OSError):
        with one_line_errors(EXIT_BAD_INPUT, ValueError, ImportError):
            config, name = read_flags()
            batch_sizes, accumulations = whole_numbers(_BATCH_SIZES), whole_numbers(_ACCUMULATIONS)
            topology = open_topology(name)
            train_images, origin = training_images(config, _TRAIN_IMAGES.value)
            to_stderr(f"{train_images} training images, as {origin} has it")
            if _SWEEP.value:
                ranking = sweep.run(
                    config,
                    topology,
                    train_images=train_images,
                    batch_sizes=batch_sizes,
                    accumulations=accumulations,
                    compile_top=_COMPILE_TOP.value,
                    say=to_stderr,
                )
                print(sweep.table(ranking))
                plan = ranking.best_plan
                print()
            else:
                plan = compile_plan(config, topology, train_images=train_images, say=to_stderr)
        print(table(plan))
        if _JSON.value:
            epath.Path(_JSON.value).write_text(json.dumps(as_json(plan), indent=1))


def read_flags() -> tuple[TrainConfig, str]:
    """The config and the topology's name. Raises ValueError."""
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise ValueError(f"--config and --topology are needed; usage: {_USAGE}")
    if _TRAIN_IMAGES.value is not None and _TRAIN_IMAGES.value < 1:
        raise ValueError(f"--train_images={_TRAIN_IMAGES.value} must be at least 1")
    if _COMPILE_TOP.value < 1:
        raise ValueError(f"--compile_top={_COMPILE_TOP.value} must be at least 1")
    return config_lib.load(_CONFIG.value, begins=False), _TOPOLOGY.value


def whole_numbers(flag: flags.FlagHolder) -> list[int]:
    """What a flag for --sweep lists. Raises ValueError."""
    given = f"--{flag.name}={','.join(flag.value)}"
    if flag.value and not _SWEEP.value:
        raise ValueError(f"{given} belongs to --sweep; without it, set the config's key")
    if not all(re.fullmatch(r"[1-9]\d*", number) for number in flag.value):
        raise ValueError(f"{given} must be positive whole numbers")
    return [int(number) for number in flag.value]


def as_json(plan: StepPlan) -> dict[str, Any]:
    """A plan as JSON values: bytes, FLOPs and seconds, unrounded."""
    values = dataclasses.asdict(plan)
    if plan.times is not None:
        values["times"] |= {
            "step": plan.times.step,
            "step_without_overlap": plan.times.step_without_overlap,
            "bound": plan.times.bound,
            "compute_fraction": plan.times.compute_fraction,
        }
        values["images_per_second"] = plan.config.batch_size / plan.times.step
        values["hours"] = plan.total_steps * plan.times.step / 3600
    return values


def table(plan: StepPlan) -> str:
    """A plan for people."""
    config = plan.config
    axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    head = [
        f"{plan.topology}: {plan.devices} devices, {axes}",
        f"batch {config.batch_size} in {config.accumulation_steps} micro-batches, remat "
        f"{config.model.remat}, attention {plan.attention}; compiled in "
        f"{plan.compile_seconds:.0f} s",
        *(f"note: {note}" for note in plan.notes),
    ]
    parts = [head, _memory(plan), _work(plan), _collectives(plan)]
    if plan.times is not None:
        parts.append(_time(plan, plan.times))
    return "\n\n".join("\n".join(part) for part in parts)


def _memory(plan: StepPlan) -> list[str]:
    memory = plan.memory
    rows = [
        ("parameters", gib(memory.parameters)),
        ("optimizer", gib(memory.optimizer)),
        ("batch and counters", gib(memory.batch)),
        ("gradients and activations", gib(memory.temporaries)),
        ("  gradients if all are kept", gib(memory.gradients)),
        ("program", gib(memory.program)),
        ("peak", gib(memory.peak)),
    ]
    if memory.limit is not None:
        share = memory.peak / memory.limit
        rows.append((f"of what {plan.chip} has for it", f"{gib(memory.limit)} ({share:.0%})"))
    return ["Memory of each device", *align(rows)]


def _work(plan: StepPlan) -> list[str]:
    ratio = plan.work.executed_flops / plan.work.model_flops
    rows = [
        ("model FLOPs", f"{plan.work.model_flops / 1e12:.4g} T"),
        ("executed FLOPs", f"{plan.work.executed_flops / 1e12:.4g} T ({ratio:.3f} of the model's)"),
        ("memory traffic", gib(plan.work.memory_traffic)),
    ]
    return ["Work of each device in a step", *align(rows)]


def _collectives(plan: StepPlan) -> list[str]:
    if not plan.work.collectives:
        return ["Collectives in a step: none"]
    rows = [("kind", "axes", "devices", "count", "bytes", "time")]
    for each in plan.work.collectives:
        seconds = each.interconnect_seconds + each.network_seconds
        rows.append(
            (
                each.kind,
                "+".join(each.axes) or "-",
                str(each.group_size),
                str(each.count),
                gib(each.bytes),
                milliseconds(seconds) if plan.times else "-",
            )
        )
    return ["Collectives in a step (bytes of the whole arrays)", *align(rows)]


def _time(plan: StepPlan, times: Roofline) -> list[str]:
    hours = plan.total_steps * times.step / 3600
    rows = [(name, milliseconds(seconds)) for name, seconds in times.parts.items()]
    rows += [
        ("step, all at once", f"{milliseconds(times.step)}, bound by {times.bound}"),
        ("step, one after the other", milliseconds(times.step_without_overlap)),
        ("model FLOPs at peak rate", f"{times.compute_fraction:.2f} of the step"),
        ("images/s", f"{plan.config.batch_size / times.step:,.0f}"),
        (
            f"{plan.total_steps} steps",
            f"{hours:.1f} hours, {hours * plan.devices:,.0f} device-hours",
        ),
    ]
    return ["Time of a step, at least", *align(rows)]


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, for tables."""
    return f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    app.run(main, flags_parser=flags_parser(_USAGE))
