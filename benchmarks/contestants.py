"""What takes turns on the device for train_step.py: train steps, matrix products, and PyTorch.

A contestant's `run(repeats)` does its work so many times, one after the other without waiting in
between, as training does, and returns the seconds to the end of the last.
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

from darl_jax.config import TrainConfig
from darl_jax.data.loader import Batches
from darl_jax.nn import flops
from darl_jax.training.optimizers import learning_rate_schedule
from darl_jax.training.sharding import global_array, make_mesh
from darl_jax.training.state import abstract_state, create_state, graph_definition
from darl_jax.training.step import lower_step, make_train_step
from darl_jax.training.step_metrics import StepMetrics

ROUNDS = 10

# Large enough that a device is at its best, small enough to be done in a moment.
_MATMUL_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
# Rows that a data worker may have made ahead; data/loading.py says how many there can be.
_CHUNKS_AHEAD, _CHUNK_ROWS = 4, 32


class Contestant(Protocol):
    """What takes a turn."""

    def run(self, repeats: int) -> float:
        """Seconds of `repeats` times the work, to its end on the device."""


class Training:
    """A config's train step on one device, the state that it carries on, and a random batch."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.mesh = make_mesh(config.mesh, jax.devices()[:1])
        self._builder = config.method.init
        rate = learning_rate_schedule(
            config.optimizer,
            batch_size=config.batch_size,
            steps_per_epoch=1000.0,
            total_steps=100_000,
        )
        self._optimizer = build_optimizer(config.optimizer, rate, config.method)
        self._abstract = abstract_state(self._builder, self._optimizer, self.mesh)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._abstract.params))
        self.key = jax.random.key(1)
        self.state: Any = None
        self.batch: PyTree = None

    def compile(self) -> jax.stages.Compiled:
        """The step that training compiles; nothing is allocated."""
        step = make_train_step(
            graph_definition(self._builder),
            self.config.method,
            self._optimizer,
            accumulation_steps=self.config.accumulation_steps,
        )
        with jax.set_mesh(self.mesh):
            batch = abstract_batch(self.config.method.inputs, self.config.batch_size, self.mesh)
            return lower_step(step, self._abstract, batch, self.key).compile()

    def allocate(self) -> None:
        """Makes the state and the batch that stays on the device."""
        self.state = create_state(self._builder, self._optimizer, jax.random.key(0), self.mesh)
        size = self.config.data.image_size
        shape = (self.config.batch_size, size, size, self.config.data.channels)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.batch = self.on_device({"image": images, "mask": np.ones(shape[0], bool)})

    def on_device(self, batch: Mapping[str, np.ndarray]) -> PyTree:
        """What the step reads of a host's batch; flags that it does not have are False."""
        abstract = abstract_batch(self.config.method.inputs, self.config.batch_size, self.mesh)
        rows = {
            key: batch[key] if key in batch else np.zeros(leaf.shape, leaf.dtype)
            for key, leaf in abstract.items()
        }
        return global_array(rows, self.mesh)


class Resident:
    """Steps on the batch that is on the device, by one compiled step."""

    def __init__(self, training: Training, compiled: jax.stages.Compiled):
        self._training = training
        self._compiled = compiled

    def run(self, repeats: int) -> float:
        """As Contestant says."""
        training = self._training
        began = time.perf_counter()
        for _ in range(repeats):
            training.state, _ = self._compiled(training.state, training.batch, training.key)
        jax.block_until_ready(training.state)
        return time.perf_counter() - began


class Fed:
    """The same steps on what the input pipeline gives, fed the way train.py does it."""

    def __init__(self, training: Training, compiled: jax.stages.Compiled, batches: Batches):
        self._training = training
        self._compiled = compiled
        self._batches = batches
        rows = training.config.batch_size
        workers = max(1, min(training.config.data.num_workers, os.cpu_count() or 1))
        ahead = _CHUNKS_AHEAD * workers * min(rows, _CHUNK_ROWS)
        self._made_ahead = 2 + math.ceil(ahead / rows)

    def run(self, repeats: int) -> float:
        """As Contestant says, after as many steps as were fed while others had their turn."""
        self._steps(self._made_ahead)
        return self._steps(repeats)

    def _steps(self, number: int) -> float:
        training = self._training
        metrics_of = StepMetrics(training.config.max_dropped_in_a_row)
        began = time.perf_counter()
        for step in range(number):
            batch = training.on_device(next(self._batches))
            training.state, metrics = self._compiled(training.state, batch, training.key)
            metrics_of.add(step, metrics)
        jax.block_until_ready(training.state)
        return time.perf_counter() - began


class Matmul:
    """A large square matrix product of the model's dtype."""

    def __init__(self, dtype: str):
        size = _MATMUL_SIZE[jax.default_backend()]
        self.flops = 2.0 * size**3
        self._matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        self._multiply = jax.jit(jnp.matmul)

    def run(self, repeats: int) -> float:
        """As Contestant says."""
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
    """Why torch_vit.py cannot do a config's work; None where it can."""
    if config.objective.name != "mse" or getattr(config.objective, "normalize_target", False):
        return "the PyTorch model learns by the squared error of pixels alone"
    if config.patch_decoder.layers:
        return "the PyTorch model's patch decoder is one linear layer"
    if config.model.positions != "rope2d" or config.model.rope_y_first:
        return "the PyTorch model has positions 'rope2d', x first, alone"
    if config.optimizer.clip_norm or config.accumulation_steps > 1:
        return "the PyTorch model neither clips nor accumulates gradients"
    return None


class TorchPeer:
    """torch_vit.py in another process, which sleeps when it is not its turn.

    Raises:
      MemoryError: it needs more than its share of the GPU.
      ValueError: it cannot run, or its work is not equal.
    """

    def __init__(self, python: str, config: TrainConfig, parameters: int):
        model, data, optimizer = config.model, config.data, config.optimizer
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
            image_flops = config.method.flops()
            ours = {
                "parameters": parameters,
                "forward_flops": image_flops // flops.train_step_flops(1, 1),
            }
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
        """As Contestant says."""
        assert self._process.stdin is not None  # a pipe
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # a pipe
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(
                f"the PyTorch process ended with code {self._process.wait()}; what it printed "
                "stands above"
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


def tell(what: str) -> None:
    """What is going on, on one line of the terminal that is written over; nothing in a file."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what} ", end="", file=sys.stderr, flush=True)


def measure(contestants: Sequence[Contestant], seconds: float) -> list[list[float]]:
    """Seconds for once the work of each contestant, one value for each of ROUNDS turns.

    All take turns, each for an equal share of `seconds`, but at least once in each round.
    """
    turn = seconds / (ROUNDS * len(contestants))
    repeats = []
    for contestant in contestants:
        tell("warms up")
        contestant.run(1)
        repeats.append(max(1, round(turn / contestant.run(1))))
    taken: list[list[float]] = [[] for _ in contestants]
    for done in range(ROUNDS):
        tell(f"round {done + 1} of {ROUNDS}")
        for contestant, number, values in zip(contestants, repeats, taken, strict=True):
            values.append(contestant.run(number) / number)
    tell("")
    return taken
