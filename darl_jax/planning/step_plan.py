"""A train step compiled for devices that are not here, and what can be read off it."""

import contextlib
import dataclasses
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
from jax.sharding import Mesh

from darl_jax.config import TrainConfig
from darl_jax.data.sources import base as sources
from darl_jax.methods.images import PatchMethod
from darl_jax.nn import attention
from darl_jax.planning import hlo, roofline
from darl_jax.planning.hlo_collectives import Collective
from darl_jax.planning.roofline import Roofline
from darl_jax.planning.step_memory import Memory, advice_where_it_does_not_fit, read_memory
from darl_jax.planning.topology import Topology
from darl_jax.training.optimizers import build_optimizer, learning_rate_schedule
from darl_jax.training.sharding import check_batch, make_mesh
from darl_jax.training.state import TrainState, abstract_state, graph_definition
from darl_jax.training.step import abstract_batch, lower_step, make_train_step

# Records of TFDS datasets in the splits that the configs train on, as their pages at
# https://www.tensorflow.org/datasets/catalog say.
KNOWN_DATASETS = {
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "cifar10": {"train": 50_000, "test": 10_000},
}

_SPLASH_BLOCK = 128  # tokens of a block of splash attention, and channels that a head is padded to


@dataclasses.dataclass(frozen=True)
class CollectiveTime:
    """A kind of collective over some axes of the mesh, all its executions in a step together."""

    kind: str
    axes: tuple[str, ...]
    group_size: int
    bytes: int  # of the whole arrays
    count: int
    interconnect_seconds: float
    network_seconds: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does on each device."""

    model_flops: float  # by the convention of flops.py
    executed_flops: int  # of the compiled program's matrix products
    memory_traffic: int  # bytes
    collectives: tuple[CollectiveTime, ...]


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a step needs and how long it must take at least; numbers are those of one device."""

    config: TrainConfig
    topology: str
    chip: str | None
    devices: int
    mesh: dict[str, int]
    attention: str
    compiler: str
    compile_seconds: float
    memory: Memory
    work: Work
    times: Roofline | None  # None where no chip is meant
    train_images: int
    total_steps: int
    notes: tuple[str, ...]


def training_images(config: TrainConfig, given: int | None) -> tuple[int, str]:
    """(records of the training split, where the number is from).

    Raises:
      ValueError: nothing says how many there are, or `config.data` names what is not there.
    """
    data: Any = config.data
    if given is not None:
        return given, "--train_images"
    if data.data_dir or data.source == "digits":
        return len(data.open_split("train_split")), "the dataset"
    name = data.dataset.split(":")[0]
    if data.source == "tfds" and name in KNOWN_DATASETS:
        split = sources.slice_split(data.train_split, KNOWN_DATASETS[name], "train_split")
        return len(split), f"TFDS's {name}"
    raise ValueError(
        "the number of training images decides the length of the run: give --train_images=N, or "
        "config.data.data_dir where the dataset is here"
    )


def _tokens(config: TrainConfig) -> int:
    method: Any = config.method
    return method.tokens


def kernel(config: TrainConfig, topology: Topology) -> tuple[str, list[str]]:
    """(the attention to compile, notes): what the run would choose, where it can be compiled here.

    Raises:
      ValueError: the run could not use it.
    """
    model, device = config.model, topology.devices[0]
    wanted = model.attention
    on_gpus = topology.chip is not None and topology.compiler == "CPU"
    if on_gpus and wanted in ("auto", "cudnn") and model.dtype == "bfloat16":
        return "xla", [
            "a GPU runs cuDNN's attention; compiled is XLA's, which keeps a token x token matrix "
            "for each head and block that cuDNN's does not"
        ]
    chosen = attention.choose_implementation(
        wanted,
        device=device,
        dtype=model.dtype,
        head_dim=model.head_dim,
        tokens=_tokens(config),
    )
    return chosen, []


def compile_plan(
    config: TrainConfig, topology: Topology, *, train_images: int, say: Callable[[str], None]
) -> StepPlan:
    """Compiles the step that the program would run, and reads the plan off it.

    Args:
      config: of the run; its mesh must suit the topology.
      topology: the devices.
      train_images: records of the training split.
      say: is told what is compiled and how long it takes.

    Raises:
      DoesNotFitError: the step needs more memory than the chips have.
      RuntimeError: the compiled program has something that is not understood.
      ValueError: the config does not suit the devices.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    check_batch(config.batch_size, config.accumulation_steps, mesh)
    config.method.check_mesh(mesh)
    chosen, notes = kernel(config, topology)
    total_steps = config.steps(train_images)
    lowered, state = lower(config, mesh, chosen, train_images=train_images, total_steps=total_steps)
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    what = (
        f"{topology.name}, {shape}, remat {config.model.remat}, batch {config.batch_size} in "
        f"{config.accumulation_steps}"
    )
    began = time.monotonic()
    with progress(f"Compiling the step for {what}", say), advice_where_it_does_not_fit():
        compiled = lowered.compile()
    seconds = time.monotonic() - began
    memory = read_memory(compiled, state, topology)
    work = read_work(compiled, config, mesh, topology, chosen)
    return StepPlan(
        config=config,
        topology=topology.name,
        chip=topology.chip.name if topology.chip else None,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        attention=chosen,
        compiler=topology.compiler,
        compile_seconds=seconds,
        memory=memory,
        work=work,
        times=roofline_of(work, topology),
        train_images=train_images,
        total_steps=total_steps,
        notes=(*notes, *compiler_notes(config, topology)),
    )


def read_work(
    compiled: jax.stages.Compiled, config: TrainConfig, mesh: Mesh, topology: Topology, chosen: str
) -> Work:
    """What the compiled step does on each device.

    Raises:
      RuntimeError: the compiled program has something that is not understood.
    """
    text = compiled.as_text() or ""
    try:
        moved = collective_times(hlo.collectives(text, mesh), mesh, topology)
        # Those of splash attention's kernels cannot be seen there.
        elsewhere = ("tpu_custom_call",) if chosen == "splash" else ()
        executed = hlo.matmul_flops(text, counted_elsewhere=elsewhere)
        traffic = hlo.memory_traffic(text)
    except ValueError as error:
        # Nothing that the user gave is wrong.
        raise RuntimeError(f"the compiled step cannot be read: {error}") from error
    if chosen == "splash":
        executed += splash_flops(config, mesh)
    return Work(
        config.batch_size * config.method.flops() / mesh.size, executed, traffic, tuple(moved)
    )


def roofline_of(work: Work, topology: Topology) -> Roofline | None:
    """The seconds that the work takes at the chips' rates, where a chip is meant."""
    chip = topology.chip
    if chip is None:
        return None
    return Roofline(
        model_compute=roofline.compute_seconds(work.model_flops, chip),
        compute=roofline.compute_seconds(work.executed_flops, chip),
        hbm=roofline.hbm_seconds(work.memory_traffic, chip),
        interconnect=sum(each.interconnect_seconds for each in work.collectives),
        network=sum(each.network_seconds for each in work.collectives),
    )


def lower(
    config: TrainConfig, mesh: Mesh, chosen: str, *, train_images: int, total_steps: int
) -> tuple[jax.stages.Lowered, TrainState]:
    """The step of a run, ready to be compiled, and the shapes and layouts of its state."""
    model = dataclasses.replace(config.model, attention=chosen)
    config = dataclasses.replace(config, model=model)
    method = config.method
    build_model = method.init
    learning_rate = learning_rate_schedule(
        config.optimizer,
        batch_size=config.batch_size,
        steps_per_epoch=train_images / config.batch_size,
        total_steps=total_steps,
    )
    optimizer = build_optimizer(config.optimizer, learning_rate, config.method)
    # All that computes anything comes before the mesh is set, whose devices may not be there.
    state = abstract_state(build_model, optimizer, mesh, ema=config.ema_decay > 0)
    step = make_train_step(
        graph_definition(build_model),
        config.method,
        optimizer,
        accumulation_steps=config.accumulation_steps,
        ema_decay=config.ema_decay,
    )
    key = jax.eval_shape(jax.random.key, 0)
    with jax.set_mesh(mesh):
        return lower_step(
            step, state, abstract_batch(config.method.inputs, config.batch_size, mesh), key
        ), state


def splash_flops(config: TrainConfig, mesh: Mesh) -> int:
    """FLOPs of a device's splash attention in a step.

    Of the blocks of 128 x 128 tokens those on and below the diagonal are computed; forward are 2
    products, of which rematerialization makes 4, and backward 3 for the queries and 4 for keys and
    values, which compute the weights again.
    """
    blocks = math.ceil(_tokens(config) / _SPLASH_BLOCK)
    channels = math.ceil(config.model.head_dim / _SPLASH_BLOCK) * _SPLASH_BLOCK
    product = 2 * _SPLASH_BLOCK**2 * channels * blocks * (blocks + 1) // 2
    products = 2 + (0 if config.model.remat == "none" else 2) + 3 + 4
    heads = config.batch_size * config.model.num_heads // mesh.size
    return products * product * heads * config.model.depth


def compiler_notes(config: TrainConfig, topology: Topology) -> list[str]:
    """What the reader must know of where the numbers come from."""
    notes = []
    if topology.compiler == "CPU":
        notes.append(
            "compiled by XLA for CPUs: FLOPs and the arrays of the state and of collectives are "
            "those of the run, temporaries and memory traffic are not a GPU's"
        )
        if config.model.dtype == "bfloat16":
            notes.append("this compiler computes bfloat16 in float32, so bytes are up to doubled")
    if not isinstance(config.method, PatchMethod):
        notes.append(
            "estimates of attention's kernels, and of what a sweep does not compile, are those of "
            "causal pre-training: full attention takes more, a frozen backbone less"
        )
    if config.model.dtype == "float32":
        notes.append("config.model.dtype is float32, and the peak rate is that of bfloat16")
    return notes


def collective_times(
    found: Sequence[Collective], mesh: Mesh, topology: Topology
) -> list[CollectiveTime]:
    """A line for each kind and axes, the longest first."""
    lines: dict[tuple[str, tuple[str, ...], int], list[float]] = {}
    for each in found:
        seconds = (0.0, 0.0)
        if topology.chip is not None and each.group_size > 1:
            # Groups of some axes may lie differently; the slowest counts. Groups that are those of
            # no axes are taken for all devices, which is the dearest.
            seconds = max(
                (
                    roofline.collective_seconds(each, group, topology.chip, topology.torus)
                    for group in topology.groups(mesh, each.axes or mesh.axis_names)
                ),
                key=sum,
            )
        line = lines.setdefault((each.kind, each.axes, each.group_size), [0, 0, 0.0, 0.0])
        for i, value in enumerate((each.bytes * each.count, each.count, *seconds)):
            line[i] += value
    result = [
        CollectiveTime(kind, axes, size, int(total), int(count), inside, network)
        for (kind, axes, size), (total, count, inside, network) in lines.items()
    ]
    return sorted(
        result, key=lambda each: (-each.interconnect_seconds - each.network_seconds, -each.bytes)
    )


@contextlib.contextmanager
def progress(what: str, say: Callable[[str], None], every: float = 15.0) -> Iterator[None]:
    """Says that something goes on, again and again, and how long it took."""
    began, done = time.monotonic(), threading.Event()
    say(f"{what} ...")

    def tick() -> None:
        while not done.wait(every):
            say(f"... {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        say(f"... {time.monotonic() - began:.0f} s in all")


def to_stderr(message: str) -> None:
    """Where progress goes, so that tables can be piped."""
    print(message, file=sys.stderr, flush=True)


def align(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows with their columns beneath each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
