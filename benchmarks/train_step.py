"""How fast a train step is, beside how fast the same device multiplies matrices.

    python benchmarks/train_step.py --model=s16 --objective=mse --batch_size=8 --dtype=float32
    python benchmarks/train_step.py --model=l16 --batch_size=256 --dtype=bfloat16
    python benchmarks/train_step.py --config=configs/cifar10_small_mse.py --batch_size=128

The step is the one that training compiles: real model, objective, optimiser, donated state; the
images are random. Steps and large square matmuls take turns, because other work on a machine slows
both: the fraction of the matmul rate says more than images/s does. README.md explains the table.
"""

import argparse
import dataclasses
import importlib.util
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from darl_jax import build
from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.models.attention import IMPLEMENTATIONS, choose_implementation
from darl_jax.models.patch_decoders import PatchDecoderConfig
from darl_jax.models.vit import DTYPES, REMAT_POLICIES
from darl_jax.objectives import OBJECTIVES
from darl_jax.optimizers import learning_rate_schedule, make_optimizer
from darl_jax.sharding import MeshConfig, make_mesh
from darl_jax.train_state import create_state, graph_definition
from darl_jax.train_step import compile_step, make_train_step

# Large enough that a device is at its best, small enough to be done in a moment.
MATMUL_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
MATMULS_A_STEP = 3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", default="s16", help="size and patch: ti4, s16, b16, l16, h14, ..")
    model.add_argument("--config", help="a config file, instead of --model")
    parser.add_argument("--objective", choices=list(OBJECTIVES), default="mse")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: float32 on a CPU")
    parser.add_argument("--attention", choices=IMPLEMENTATIONS)
    parser.add_argument("--remat", choices=list(REMAT_POLICIES))
    parser.add_argument("--unroll", type=int, help="blocks for each iteration of the scan")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure")
    return parser.parse_args()


def load_config(path: str) -> TrainConfig:
    """The config of a file.

    Raises:
      ValueError: there is no such file, or it is no config.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"--config={path}: there is no such file; configs/ holds some")
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None and spec.loader is not None  # a file that exists has both
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return config_lib.load(module.get_config())


def size_config(model: str, objective: str, image_size: int) -> TrainConfig:
    """A size with a patch, such as 's16', with the decoder of Table 8's runs.

    Raises:
      ValueError: no such size.
    """
    sizes = {name.lower(): vit for name, vit in config_lib.VIT_SIZES.items()}
    match = re.fullmatch(r"([a-z]+)(\d+)", model.lower())
    if match is None or match[1] not in sizes:
        raise ValueError(f"--model={model}: give one of {', '.join(sizes)} and a patch, as in s16")
    decoder = PatchDecoderConfig()
    if OBJECTIVES[objective][1].denoising:
        decoder = PatchDecoderConfig(kind="transformer", layers=1)
    default = TrainConfig()
    return dataclasses.replace(
        default,
        model=dataclasses.replace(sizes[match[1]], patch_size=int(match[2])),
        patch_decoder=decoder,
        objective=OBJECTIVES[objective][0](),
        data=dataclasses.replace(default.data, image_size=image_size),
    )


def benchmark_config(arguments: argparse.Namespace) -> TrainConfig:
    """What is measured: a config or a size, and how the command line would have it computed."""
    if arguments.config:
        config = load_config(arguments.config)
    else:
        config = size_config(arguments.model, arguments.objective, arguments.image_size)
    changes = {
        key: getattr(arguments, key)
        for key in ("dtype", "attention", "remat", "unroll")
        if getattr(arguments, key) is not None
    }
    if jax.default_backend() == "cpu":
        changes.setdefault("dtype", "float32")
    return dataclasses.replace(
        config,
        batch_size=arguments.batch_size,
        model=dataclasses.replace(config.model, **changes),
        mesh=MeshConfig(),
    )


def prepare_step(config: TrainConfig) -> tuple[jax.stages.Compiled, Callable[[], None]]:
    """The compiled step and a function that takes one, to the end."""
    builder = build.model_builder(config)
    learning_rate = learning_rate_schedule(
        config.optimizer, batch_size=config.batch_size, steps_per_epoch=1000, total_steps=100_000
    )
    optimizer = make_optimizer(config.optimizer, learning_rate)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state = create_state(builder, optimizer, jax.random.key(0), mesh)
    shape = (config.batch_size, *(config.data.image_size,) * 2, config.data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batch = {"image": jnp.asarray(images), "mask": jnp.ones(config.batch_size, bool)}
    key = jax.random.key(1)
    step = make_train_step(
        graph_definition(builder),
        build.build_objective(config),
        optimizer,
        accumulation_steps=config.accumulation_steps,
    )
    compiled = compile_step(step, state, batch, key)

    def take_step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch, key)
        jax.block_until_ready((state, metrics))

    return compiled, take_step


def make_matmul(dtype: str) -> tuple[float, Callable[[], None]]:
    """FLOPs of a large square matmul, and a function that does one, to the end."""
    size = MATMUL_SIZE[jax.default_backend()]
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    matmul = jax.jit(jnp.matmul)

    def multiply() -> None:
        jax.block_until_ready(matmul(a, a))

    return 2.0 * size**3, multiply


def seconds(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(
    step: Callable[[], None], matmul: Callable[[], None], limit: float
) -> tuple[list[float], list[float]]:
    """Seconds of steps and of matmuls, taken in turns for `limit` seconds; at least 3 steps."""
    step()
    matmul()
    steps: list[float] = []
    matmuls: list[float] = []
    end = time.monotonic() + limit
    while len(steps) < 3 or time.monotonic() < end:
        matmuls += [seconds(matmul) for _ in range(MATMULS_A_STEP)]
        steps.append(seconds(step))
        print(f"\r{len(steps)} steps, the last {steps[-1]:.3f} s ", end="", file=sys.stderr)
    print(file=sys.stderr)
    return steps, matmuls


def memory_line(compiled: jax.stages.Compiled) -> str:
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak is not None:
        return f"{peak / 2**30:.2f} GiB at the peak"
    memory = compiled.memory_analysis()
    if memory is None:
        return "not known"
    state, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return f"{state / 2**20:.0f} MiB of state and batch, {temporary / 2**20:.0f} MiB temporary"


def main() -> None:
    arguments = parse_arguments()
    try:
        config = benchmark_config(arguments)
        model = config.model
        attention = choose_implementation(
            model.attention,
            device=jax.devices()[0],
            dtype=model.dtype,
            head_dim=model.head_dim,
            tokens=config.grid[0] * config.grid[1],
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(
        f"{arguments.config or arguments.model}, {config.objective.name}, batch "
        f"{config.batch_size}, {model.dtype}, attention {attention}, remat {model.remat}, unroll "
        f"{model.unroll}, on {jax.devices()[0].device_kind}; compiling ...",
        flush=True,
    )
    began = time.perf_counter()
    compiled, step = prepare_step(config)
    compile_seconds = time.perf_counter() - began
    matmul_flops, matmul = make_matmul(model.dtype)
    steps, matmuls = measure(step, matmul, arguments.seconds)

    flops = build.step_flops(config)
    print(f"{'':26}{'best':>10}{'median':>10}")
    best, median = ((f(steps), f(matmuls)) for f in (np.min, np.median))
    rows: list[tuple[str, Callable[[float, float], float], str]] = [
        ("step, ms", lambda s, m: 1e3 * s, ".1f"),
        ("images/s", lambda s, m: config.batch_size / s, ".1f"),
        ("model, GFLOP/s", lambda s, m: flops / s / 1e9, ".0f"),
        ("matmul, GFLOP/s", lambda s, m: matmul_flops / m / 1e9, ".0f"),
        ("fraction of matmul rate", lambda s, m: flops / s * m / matmul_flops, ".3f"),
    ]
    for name, value, form in rows:
        print(f"{name:26}{value(*best):>10{form}}{value(*median):>10{form}}")
    print(f"model FLOPs per image     {flops / config.batch_size / 1e9:.2f} GFLOP, counted")
    print(f"memory                    {memory_line(compiled)}")
    print(f"compiled in               {compile_seconds:.1f} s, initialisation included")


if __name__ == "__main__":
    main()
