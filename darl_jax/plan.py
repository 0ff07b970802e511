"""Compiles a config's train step for absent devices, and prints its memory, work and least time.

    python -m darl_jax.plan --config=configs/darl_vit_b16_mse.py --topology=v5e:16x16

The step is train.py's. With --sweep several meshes and rematerialization policies are compared.
Exit codes: 0 a plan that fits; 1 the step does not fit the memory of the chips, or compiling it
failed; 2 a config or topology that cannot be used. docs/planning.md lists the assumptions.
"""

import dataclasses
import json
import re
import sys
from typing import Any

from absl import flags
from etils import epath
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.planning import sweep
from darl_jax.planning.memory import DoesNotFitError
from darl_jax.planning.records import training_records, with_classes
from darl_jax.planning.roofline import Roofline
from darl_jax.planning.step_plan import StepPlan, compile_plan
from darl_jax.planning.tables import align, gib, milliseconds
from darl_jax.planning.topology import VALID_FORMS, open_topology
from darl_jax.runtime import cli

_USAGE = "python -m darl_jax.plan --config=configs/darl_vit_b16_mse.py --topology=v5e:16x16"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; --config.KEY=VALUE overrides any of its keys."
)
_TOPOLOGY = flags.DEFINE_string("topology", None, f"Devices: {VALID_FORMS}.")
_RECORDS = flags.DEFINE_integer(
    "records", None, "Number of training records, where the dataset is absent.", lower_bound=1
)
_SWEEP = flags.DEFINE_bool("sweep", False, "Compare meshes and rematerialization policies.")
_COMPILE_TOP = flags.DEFINE_integer(
    "compile_top", 3, "With --sweep: number of meshes to compile.", lower_bound=1
)
_ACCUMULATIONS = flags.DEFINE_list(
    "accumulations", [], "With --sweep: values of accumulation_steps, separated by commas."
)
_JSON = flags.DEFINE_string("json", None, "File for the plan as JSON.")


def main() -> None:
    """Plans, and exits with one of the codes above."""
    if _CONFIG.value is None or not _TOPOLOGY.value:
        raise ValueError(f"--config and --topology are needed; usage: {_USAGE}")
    config = with_classes(config_lib.load(_CONFIG.value, begins=False))
    accumulations = accumulation_steps() or [config.accumulation_steps]
    topology = open_topology(_TOPOLOGY.value)
    records, origin = training_records(config, _RECORDS.value)
    print(f"{records} training records, {origin}", file=sys.stderr)
    with cli.one_line_errors(cli.EXIT_ERROR, DoesNotFitError):
        if _SWEEP.value:
            plans = sweep.run(
                *(config, topology),
                records=records,
                accumulations=accumulations,
                compile_top=_COMPILE_TOP.value,
            )
            print(sweep.table(plans), end="\n\n")
            plan = plans[0]
        else:
            plan = compile_plan(config, topology, records=records)
    print(table(plan))
    if _JSON.value:
        epath.Path(_JSON.value).write_text(json.dumps(as_json(plan), indent=1))


def accumulation_steps() -> list[int]:
    """Returns the values of --accumulations. Raises ValueError."""
    given = f"--accumulations={','.join(_ACCUMULATIONS.value)}"
    if _ACCUMULATIONS.value and not _SWEEP.value:
        raise ValueError(f"{given} needs --sweep; without it, set config.accumulation_steps")
    if not all(re.fullmatch(r"[1-9]\d*", number) for number in _ACCUMULATIONS.value):
        raise ValueError(f"{given} must be positive integers separated by commas")
    return [int(number) for number in _ACCUMULATIONS.value]


def as_json(plan: StepPlan) -> dict[str, Any]:
    """Returns a plan as JSON values: bytes, FLOPs and seconds, unrounded."""
    values = dataclasses.asdict(plan)
    if plan.times is not None:
        derived = ("step", "step_without_overlap", "bound", "compute_fraction")
        values["times"] |= {name: getattr(plan.times, name) for name in derived}
        values["examples_per_second"] = plan.config.batch_size / plan.times.step
        values["hours"] = plan.total_steps * plan.times.step / 3600
    return values


def table(plan: StepPlan) -> str:
    """Formats a plan."""
    config = plan.config
    axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    remat = getattr(config.model, "remat", None)
    chosen = ({"remat": remat} if remat else {}) | plan.kernels
    kernels = "".join(f", {operation} {name}" for operation, name in chosen.items())
    head = [
        f"{plan.topology}: {plan.devices} devices, {axes}",
        f"batch {config.batch_size} in {config.accumulation_steps} micro-batches{kernels}; "
        f"compiled in {plan.compile_seconds:.0f} s",
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
        rows.append((f"of the memory of {plan.chip}", f"{gib(memory.limit)} ({share:.0%})"))
    return ["Memory of each device", *align(rows)]


def _work(plan: StepPlan) -> list[str]:
    work = plan.work
    ratio = work.executed_flops / work.model_flops
    least, uncached = gib(work.memory_traffic), gib(work.memory_traffic_uncached)
    rows = [
        ("model FLOPs", f"{work.model_flops / 1e12:.4g} T"),
        ("executed FLOPs", f"{work.executed_flops / 1e12:.4g} T ({ratio:.3f} of the model's)"),
        ("memory traffic", f"{least} at least, {uncached} if nothing stays on the chip"),
    ]
    return ["Work of each device in a step", *align(rows)]


def _collectives(plan: StepPlan) -> list[str]:
    if not plan.work.collectives:
        return ["Collectives in a step: none"]
    rows = [("kind", "axes", "devices", "count", "bytes", "time")]
    for each in plan.work.collectives:
        seconds = each.interconnect_seconds + each.network_seconds
        numbers = str(each.group_size), str(each.count), gib(each.bytes)
        took = milliseconds(seconds) if plan.times else "-"
        rows.append((each.kind, "+".join(each.axes) or "-", *numbers, took))
    return ["Collectives in a step (bytes of the whole arrays)", *align(rows)]


def _time(plan: StepPlan, times: Roofline) -> list[str]:
    hours = plan.total_steps * times.step / 3600
    duration = f"{hours:.1f} hours, {hours * plan.devices:,.0f} device-hours"
    rows = [(name, milliseconds(seconds)) for name, seconds in times.parts.items()]
    rows += [
        ("step, all at once", f"{milliseconds(times.step)}, bound by {times.bound}"),
        ("step, one after the other", milliseconds(times.step_without_overlap)),
        ("model FLOPs at peak rate", f"{times.compute_fraction:.2f} of the step"),
        ("examples/s", f"{plan.config.batch_size / times.step:,.0f}"),
        (f"{plan.total_steps} steps", duration),
    ]
    return ["Time of a step, at least", *align(rows)]


if __name__ == "__main__":
    cli.run(main, _USAGE)
