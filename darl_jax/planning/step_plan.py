"""Train step compiled for devices that are not present, and what it needs there."""

import contextlib
import dataclasses
import functools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from darl_jax.config import TrainConfig
from darl_jax.planning import roofline
from darl_jax.planning.collectives import Collective, collectives
from darl_jax.planning.matmul_flops import matmul_flops
from darl_jax.planning.memory import Memory, advice_on_refusal, read_memory
from darl_jax.planning.roofline import Roofline
from darl_jax.planning.topology import Topology
from darl_jax.training.optimizers import build_optimizer, learning_rate_schedule
from darl_jax.training.sharding import check_batch, make_mesh
from darl_jax.training.state import abstract_state, graph_definition
from darl_jax.training.step import abstract_batch, lower_step, make_train_step


@dataclasses.dataclass(frozen=True)
class CollectiveTime:
    """Kind of collective over some mesh axes, all its executions in a step together."""

    kind: str
    axes: tuple[str, ...]
    group_size: int
    bytes: int  # of the whole arrays
    count: int
    interconnect_seconds: float
    network_seconds: float


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of each device in a step."""

    model_flops: float  # by the convention of nn/flops.py
    executed_flops: float  # of all matrix products, recomputed ones included
    memory_traffic: int  # bytes of HBM at least: each byte held is written and read once
    memory_traffic_uncached: int  # bytes if every operation read and wrote HBM
    collectives: tuple[CollectiveTime, ...]


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Needs and least duration of a step; the numbers are those of one device."""

    config: TrainConfig
    topology: str
    chip: str | None
    devices: int
    mesh: dict[str, int]
    kernels: dict[str, str]  # by operation
    compiler: str
    compile_seconds: float
    memory: Memory
    work: Work
    times: Roofline | None  # None without a chip
    records: int
    total_steps: int
    notes: tuple[str, ...]


def compile_plan(config: TrainConfig, topology: Topology, *, records: int) -> StepPlan:
    """Compiles the step that train.py runs on `records` training records, and reads the plan.

    Raises:
      DoesNotFitError: the step needs more memory than the chips have.
      RuntimeError: the compiled program cannot be read.
      ValueError: the config does not suit the devices.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    check_batch(config.batch_size, config.accumulation_steps, mesh)
    config.method.check_mesh(mesh)
    compiled_config, notes = with_kernels(config, topology)
    step, *args = step_and_arguments(compiled_config, mesh, records)
    remat = getattr(config.model, "remat", None)
    title = ", ".join(
        [f"Compiling the step for {topology.name}"]
        + [f"{axis} {size}" for axis, size in mesh.shape.items()]
        + ([f"remat {remat}"] if remat else [])
        + [f"batch {config.batch_size} in {config.accumulation_steps}"]
    )
    began = time.monotonic()
    with jax.set_mesh(mesh), progress(title), advice_on_refusal():
        compiled = lower_step(step, *args).compile()
    seconds = time.monotonic() - began
    memory = read_memory(compiled, args[0], topology)
    # A fused kernel hides its products: XLA's attention does as many, over the full square.
    visible = with_model(config, attention="xla")
    if visible != compiled_config:
        step, *args = step_and_arguments(visible, mesh, records)
    with jax.set_mesh(mesh):
        executed = matmul_flops(step, *args) / mesh.size
    try:
        found = collectives(compiled.as_text() or "", mesh)
    except ValueError as error:  # Nothing that the user gave is wrong.
        raise RuntimeError(f"the compiled step cannot be read: {error}") from error
    least, uncached = memory_traffic(compiled, executed, config.accumulation_steps)
    work = Work(
        model_flops=config.batch_size * config.method.flops() / mesh.size,
        executed_flops=executed,
        memory_traffic=least,
        memory_traffic_uncached=uncached,
        collectives=tuple(collective_times(found, mesh, topology)),
    )
    return StepPlan(
        config=config,
        topology=topology.name,
        chip=topology.chip.name if topology.chip else None,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        kernels=dict(compiled_config.method.kernels(topology.devices[0])),
        compiler=topology.compiler,
        compile_seconds=seconds,
        memory=memory,
        work=work,
        times=roofline_of(work, topology),
        records=records,
        total_steps=config.steps(records),
        notes=(*notes, *compiler_notes(config, topology)),
    )


def with_model(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Returns the config with other values of those keys of `config.model` that it has."""
    keys = {field.name for field in dataclasses.fields(config.model)}
    kept = {key: value for key, value in changes.items() if key in keys}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **kept))


def with_kernels(config: TrainConfig, topology: Topology) -> tuple[TrainConfig, list[str]]:
    """Returns (config with kernels that compile here, notes).

    Raises:
      ValueError: a kernel that the config names does not run on the topology.
    """
    on_gpus = topology.chip is not None and topology.compiler == "CPU"
    wanted = getattr(config.model, "attention", None)
    if on_gpus and wanted in ("auto", "cudnn") and config.model.dtype == "bfloat16":
        return with_model(config, attention="xla"), [
            "a GPU runs cuDNN's attention; compiled is XLA's, which keeps a token x token matrix "
            "for each head and block that cuDNN's does not"
        ]
    return with_model(config, **config.method.kernels(topology.devices[0])), []


def step_and_arguments(config: TrainConfig, mesh: Mesh, records: int) -> tuple[Any, ...]:
    """Returns the train step of a run and its arguments (state, batch, key) as shapes."""
    method = config.method
    schedule = functools.partial(
        learning_rate_schedule,
        batch_size=config.batch_size,
        steps_per_epoch=records / config.batch_size,
        total_steps=config.steps(records),
    )
    optimizer = build_optimizer(config.optimizer, schedule(config.optimizer), method, schedule)
    # Whatever computes comes before the mesh is set, for its devices may be absent.
    state = abstract_state(method.init, optimizer, mesh, ema=config.ema_decay > 0)
    step = make_train_step(
        graph_definition(method.init),
        method,
        optimizer,
        accumulation_steps=config.accumulation_steps,
        ema_decay=config.ema_decay,
    )
    batch = abstract_batch(method.inputs, config.batch_size, mesh)
    return step, state, batch, jax.eval_shape(jax.random.key, 0)


def memory_traffic(
    compiled: jax.stages.Compiled, executed_flops: float, accumulation_steps: int
) -> tuple[int, int]:
    """Returns bounds (least, uncached) on the bytes that a step reads from and writes to HBM.

    At least, the state is read and written once, and the temporaries are written and read once in
    each micro-batch. At most, no operation finds its input on the chip: XLA's bytes accessed, which
    count a loop's body once, times the mean number of trips. This mean is the ratio of the executed
    FLOPs to XLA's count, in which a loop's body stands once too.
    """
    stats: Any = compiled.memory_analysis()
    state = stats.argument_size_in_bytes + stats.output_size_in_bytes
    least = state + 2 * stats.temp_size_in_bytes * accumulation_steps
    cost: Any = compiled.cost_analysis()
    trips = max(1.0, executed_flops / cost["flops"])
    uncached = state + trips * max(0.0, cost["bytes accessed"] - state)
    return least, max(least, round(uncached))


def roofline_of(work: Work, topology: Topology) -> Roofline | None:
    """Returns the seconds of the work at the chip's rates; None without a chip."""
    chip = topology.chip
    if chip is None:
        return None
    return Roofline(
        model_compute=work.model_flops / chip.peak_bf16_flops,
        compute=work.executed_flops / chip.peak_bf16_flops,
        hbm=work.memory_traffic / chip.hbm_bytes_per_second,
        interconnect=sum(each.interconnect_seconds for each in work.collectives),
        network=sum(each.network_seconds for each in work.collectives),
    )


def compiler_notes(config: TrainConfig, topology: Topology) -> list[str]:
    """Returns notes on the origin of the numbers."""
    notes, dtype = [], getattr(config.model, "dtype", "float32")
    if topology.compiler == "CPU":
        notes.append(
            "compiled by XLA for CPUs: FLOPs and the arrays of the state and of collectives are "
            "those of the run, temporaries and memory traffic are not a GPU's"
        )
        if dtype == "bfloat16":
            notes.append("this compiler computes bfloat16 in float32, so bytes are up to doubled")
    if dtype == "float32":
        notes.append("config.model.dtype is float32, and the peak rate is that of bfloat16")
    return notes


def collective_times(
    found: Sequence[Collective], mesh: Mesh, topology: Topology
) -> list[CollectiveTime]:
    """Sums collectives by kind and axes, the longest first."""
    lines: dict[tuple[str, tuple[str, ...], int], np.ndarray] = {}
    for each in found:
        seconds = (0.0, 0.0)
        if topology.chip is not None and each.group_size > 1:
            # Groups of the same axes may lie differently; the slowest counts. Groups that fit no
            # axes are taken for all devices, the slowest of all.
            seconds = max(
                (
                    roofline.collective_seconds(each, group, topology.chip, topology.torus)
                    for group in topology.groups(mesh, each.axes or mesh.axis_names)
                ),
                key=sum,
            )
        values = np.array([each.bytes * each.count, each.count, *seconds])
        key = (each.kind, each.axes, each.group_size)
        lines[key] = lines.get(key, 0.0) + values
    result = [
        CollectiveTime(kind, axes, size, int(total), int(count), float(inside), float(network))
        for (kind, axes, size), (total, count, inside, network) in lines.items()
    ]
    return sorted(
        result, key=lambda each: (-each.interconnect_seconds - each.network_seconds, -each.bytes)
    )


@contextlib.contextmanager
def progress(title: str) -> Iterator[None]:
    """Prints on stderr that work is under way, every 15 s, and its duration at the end."""
    began, done = time.monotonic(), threading.Event()
    print(f"{title} ...", file=sys.stderr, flush=True)

    def tick() -> None:
        while not done.wait(15.0):
            print(f"... {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print(f"... done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
