"""Contestants that take turns on the device for train_step.py: steps, matrix products, PyTorch.

A contestant's `run(repeats)` repeats its work without waiting in between, as training does, and
returns the seconds to the end of the last repeat.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.data import pipeline
from darl_jax.data.images.config import ImagesConfig
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.training.optimizers import build_optimizer, learning_rate_schedule
from darl_jax.training.sharding import make_mesh
from darl_jax.training.state import abstract_state, create_state, graph_definition
from darl_jax.training.step import abstract_batch, device_batch, lower_step, make_train_step
from darl_jax.training.step_metrics import StepMetrics

ROUNDS = 10

# Large enough that a device is at its best, small enough to take a moment.
_MATMUL_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
# Rows that a data worker may have made ahead; data/loading.py has their number.
_CHUNKS_AHEAD, _CHUNK_ROWS = 4, 32


class Contestant(Protocol):
    """One participant of `measure`."""

    def run(self, repeats: int) -> float:
        """Seconds of `repeats` times the work, to its end on the device."""


def load_config(path: str) -> TrainConfig:
    """Loads the config of FILE.py or FILE.py:WORD.

    Raises:
      ValueError: the file or the word does not exist.
    """
    if not pathlib.Path(path.split(":")[0]).is_file():
        raise ValueError(f"--config={path}: there is no such file; configs/ holds some")
    return config_lib.load(config_lib.from_file(path), begins=False)


class Training:
    """A config's compiled train step on one device, its state, and a random batch."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.mesh = make_mesh(config.mesh, jax.devices()[:1])
        method = config.method
        rate = learning_rate_schedule(
            config.optimizer,
            batch_size=config.batch_size,
            steps_per_epoch=1000.0,
            total_steps=100_000,
        )
        optimizer = build_optimizer(config.optimizer, rate, method)
        abstract = abstract_state(method.init, optimizer, self.mesh)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
        self.key = jax.random.key(1)
        step = make_train_step(
            graph_definition(method.init),
            method,
            optimizer,
            accumulation_steps=config.accumulation_steps,
        )
        began = time.perf_counter()
        with jax.set_mesh(self.mesh):
            batch = abstract_batch(method.inputs, config.batch_size, self.mesh)
            self.compiled = lower_step(step, abstract, batch, self.key).compile()
        self.about = {
            "step": f"attention {config.model.attention}",
            "compile_seconds": time.perf_counter() - began,
            "memory_bytes": memory_of(self.compiled),
        }
        self.state: Any = create_state(method.init, optimizer, jax.random.key(0), self.mesh)
        rng, rows = np.random.default_rng(0), config.batch_size
        random = {
            name: rng.integers(0, 256 if x.dtype == np.uint8 else 2, (rows, *x.shape), x.dtype)
            for name, x in method.inputs.items()
        }
        flags = {"mask": np.ones(rows, bool), "replaced": np.zeros(rows, bool)}
        self.batch = self.on_device(random | flags)

    def on_device(self, rows: Mapping[str, np.ndarray]) -> PyTree:
        """A host's batch as the step reads it."""
        return device_batch(rows, self.config.method.inputs, self.mesh, stop=False)


class Resident:
    """Steps on the batch that stays on the device."""

    def __init__(self, training: Training):
        self._training = training

    def run(self, repeats: int) -> float:
        """See Contestant."""
        training = self._training
        began = time.perf_counter()
        for _ in range(repeats):
            training.state, _ = training.compiled(training.state, training.batch, training.key)
        jax.block_until_ready(training.state)
        return time.perf_counter() - began


class Fed:
    """The same steps on batches of the input pipeline, fed the way train.py does it."""

    def __init__(self, training: Training):
        self._training = training
        config = training.config
        self._batches = pipeline.train_batches(
            config.data.open().train,
            config.data,
            batch_size=config.batch_size,
            seed=0,
            start_step=0,
        )
        rows = config.batch_size
        workers = max(1, min(config.data.num_workers, os.cpu_count() or 1))
        ahead = _CHUNKS_AHEAD * workers * min(rows, _CHUNK_ROWS)
        self._made_ahead = 2 + math.ceil(ahead / rows)

    def run(self, repeats: int) -> float:
        """See Contestant; first takes as many steps as were fed during others' turns."""
        self._steps(self._made_ahead)
        return self._steps(repeats)

    def _steps(self, number: int) -> float:
        training = self._training
        metrics_of = StepMetrics(training.config.max_dropped_in_a_row)
        began = time.perf_counter()
        for step in range(number):
            batch = training.on_device(next(self._batches))
            training.state, metrics = training.compiled(training.state, batch, training.key)
            metrics_of.add(step, metrics)
        jax.block_until_ready(training.state)
        return time.perf_counter() - began

    def __enter__(self) -> "Fed":
        return self

    def __exit__(self, *error: object) -> None:
        self._batches.close()


class Matmul:
    """A large square matrix product of the model's dtype."""

    def __init__(self, dtype: str):
        size = _MATMUL_SIZE[jax.default_backend()]
        self.flops = 2.0 * size**3
        self._matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        self._multiply = jax.jit(jnp.matmul)

    def run(self, repeats: int) -> float:
        """See Contestant."""
        began = time.perf_counter()
        product = self._matrix
        for _ in range(repeats):
            product = self._multiply(self._matrix, self._matrix)
        jax.block_until_ready(product)
        return time.perf_counter() - began


def memory_of(compiled: jax.stages.Compiled) -> int:
    """Bytes of state, batch and temporaries while the step runs, as the compiler plans them."""
    memory = compiled.memory_analysis()
    assert memory is not None  # every backend of this project plans it
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def why_no_peer(config: TrainConfig) -> str | None:
    """The reason why torch_vit.py cannot do a config's work; None where it can."""
    objective = config.objective
    if not isinstance(objective, MSEConfig) or objective.normalize_target or objective.two_stream:
        return "the PyTorch model has the squared error of pixels, in one stream"
    if objective.patch_decoder.layers:
        return "the PyTorch model's patch decoder is one linear layer"
    if config.model.positions != "rope2d" or config.model.rope_y_first:
        return "the PyTorch model has positions 'rope2d', x first"
    if config.optimizer.clip_norm or config.accumulation_steps > 1:
        return "the PyTorch model neither clips nor accumulates gradients"
    return None


class TorchPeer:
    """torch_vit.py in another process, which sleeps between its turns.

    Raises:
      MemoryError: it needs more than its share of the GPU.
      ValueError: it cannot run, or its work is not equal.
    """

    def __init__(self, python: str, config: TrainConfig, parameters: int):
        model, data, optimizer = config.model, config.data, config.optimizer
        assert isinstance(data, ImagesConfig)
        platform = jax.default_backend()
        if platform not in ("cpu", "gpu"):
            raise ValueError(
                f"--torch_python: PyTorch is compared on GPUs and CPUs, not {platform}"
            )
        shape = {
            key: getattr(model, key)
            for key in ("width", "depth", "num_heads", "mlp_dim", "patch_size", "dtype")
        } | {
            "max_wavelength": model.rope_max_wavelength,
            "image_size": data.image_size,
            "channels": data.channels,
            "mean": data.mean,
            "std": data.std,
            "batch_size": config.batch_size,
            **{key: getattr(optimizer, key) for key in ("b1", "b2", "eps", "weight_decay")},
            "device": "cuda" if platform == "gpu" else "cpu",
        }
        program = pathlib.Path(__file__).with_name("torch_vit.py")
        try:
            self._process = subprocess.Popen(
                [python, str(program), json.dumps(shape)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise ValueError(f"--torch_python={python} cannot be run: {error.strerror}") from error
        try:
            self.about = self._answer()
            ours = {"parameters": parameters, "forward_flops": config.method.flops() // 3}
            for key, value in ours.items():
                if self.about[key] != value:
                    raise ValueError(
                        f"the PyTorch model is not of equal work: its {key} are "
                        f"{self.about[key]}, ours {value}"
                    )
        except (ValueError, MemoryError):
            self._end()
            raise

    def run(self, repeats: int) -> float:
        """See Contestant."""
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # a pipe
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(
                f"the PyTorch process ended with code {self._process.wait()}; its output is above"
            )
        answer = json.loads(line)
        if "error" in answer:
            memory = "out of memory" in answer["error"]
            raise (MemoryError if memory else ValueError)(f"PyTorch: {answer['error']}")
        return dict(answer)

    def _end(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> "TorchPeer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()


def show(status: str) -> None:
    """Prints a status line on a terminal, over the last one."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{status} ", end="", file=sys.stderr, flush=True)


def measure(contestants: Sequence[Contestant], seconds: float) -> list[list[float]]:
    """Seconds of one repeat of each contestant, one value for each of ROUNDS turns.

    All take turns, each for an equal share of `seconds`, but at least once in each round.
    """
    turn = seconds / (ROUNDS * len(contestants))
    repeats = []
    for contestant in contestants:
        show("warms up")
        contestant.run(1)
        repeats.append(max(1, round(turn / contestant.run(1))))
    taken: list[list[float]] = [[] for _ in contestants]
    for done in range(ROUNDS):
        show(f"round {done + 1} of {ROUNDS}")
        for contestant, number, values in zip(contestants, repeats, taken, strict=True):
            values.append(contestant.run(number) / number)
    show("")
    return taken
