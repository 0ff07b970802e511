"""Trained model as the codec uses it: its network in a numeric mode, and its identity."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float64, Int, Int32, PyTree

from darl_jax.codec.alternatives import Alternatives
from darl_jax.codec.order import Starts
from darl_jax.codec.stream import Network
from darl_jax.methods.ardm.method import ARDM
from darl_jax.methods.ardm.policies import make_policy
from darl_jax.training.checkpoint.reading import arrays_by_name
from darl_jax.training.state import graph_definition

Policy = Literal["best", "even"]

# Keys of networks that change neither what they compute nor the parameters.
_NOT_HASHED = ("attention", "dtype", "dropout", "remat", "unroll")
_LOSSES = "loss_per_step"


@dataclasses.dataclass(frozen=True)
class CodecModel:
    """A model as the codec uses it.

    Attributes:
      shape: of an item, the channels last.
      hash: SHA-256 of what decides its tables.
      losses: L_t of each stage and step, from which the best policy is made.
      flops: of the network for one item and call.
    """

    network: Network
    alternatives: Alternatives
    shape: tuple[int, ...]
    hash: bytes
    losses: Float64[np.ndarray, "stage step"]
    flops: int = 0

    @property
    def positions(self) -> int:
        """Positions of an item, D."""
        return int(np.prod(self.shape))

    def starts(self, policy: Policy, calls: int) -> Starts:
        """First ranks of the calls of each stage.

        Raises:
          ValueError: not between 1 and D calls.
        """
        return make_policy(policy, self.losses, calls).tolist()


@contextlib.contextmanager
def numerics(fast: bool) -> Iterator[None]:
    """Number formats of a mode: float64, or float32 with full products.

    TPUs have no float64: the portable mode computes on their host.
    """
    device = jax.local_devices(backend="cpu")[0] if jax.default_backend() == "tpu" else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_matmul_precision("highest"))
        if not fast:
            stack.enter_context(jax.enable_x64(True))
            if device is not None:
                stack.enter_context(jax.default_device(device))
        yield


def open_model(method: ARDM, params: Mapping[str, Any], *, fast: bool, name: str) -> CodecModel:
    """A model with the parameters of a checkpoint; to be called and used in `numerics(fast)`.

    Args:
      params: nested, of NumPy arrays.
      name: the checkpoint's, for messages.

    Raises:
      ValueError: the parameters are of another model, or it is a mixture of logistics, whose small
        probabilities are differences that float64 does not give to within the guard.
    """
    if method.objective.mixtures:
        raise ValueError(
            f"objective.mixtures={method.objective.mixtures} must be 0 for the codec: train a "
            "model with a logit for each value, or for each child"
        )
    dtype = "float32" if fast else "float64"
    own = dataclasses.replace(method, model=dataclasses.replace(method.model, dtype=dtype))
    expected = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: method.init(nnx.Rngs(0))))[1])
    wanted = {path: leaf.shape for path, leaf in arrays_by_name(expected).items()}
    found = {path: leaf.shape for path, leaf in arrays_by_name(params).items()}
    if wanted != found:
        path = min(path for path, _ in wanted.items() ^ found.items())
        raise ValueError(
            f"{name} is of another model than its config: {path} is {found.get(path, 'absent')} "
            f"and should be {wanted.get(path, 'absent')}"
        )
    return CodecModel(
        network=CompiledNetwork(own, params),
        alternatives=Alternatives(method.stages, method.objective.parametrization),
        shape=tuple(method.data_shape),
        hash=model_hash(method, params),
        losses=np.abs(np.asarray(params[_LOSSES], np.float64)),
        flops=method.model.flops(method.problem),
    )


class CompiledNetwork:
    """The model's logits as a compiled function on NumPy arrays."""

    def __init__(self, method: ARDM, params: PyTree) -> None:
        self._shape = tuple(method.data_shape)
        self._params = jax.device_put(params)
        graphdef = graph_definition(method.init)

        def logits(
            params: PyTree,
            values: Int[Array, "batch ..."],
            known: Bool[Array, "batch ..."],
            step: Int[Array, " batch"],
            stage: Int[Array, " batch"],
        ) -> Float[Array, "batch ..."]:
            return method.logits(nnx.merge(graphdef, params), values, known, step, stage)

        self._logits = jax.jit(logits)

    def __call__(
        self,
        values: Int32[np.ndarray, "row position"],
        known: Bool[np.ndarray, "row position"],
        step: Int32[np.ndarray, " row"],
        stage: int,
    ) -> Float[np.ndarray, "row position output"]:
        """Logits at all positions of a batch, on the host."""
        rows, positions = values.shape
        shape, stages = (rows, *self._shape), np.full(rows, stage, np.int32)
        found = self._logits(
            self._params, values.reshape(shape), known.reshape(shape), step, stages
        )
        return np.asarray(found).reshape(rows, positions, -1)


def model_hash(method: ARDM, params: Mapping[str, Any]) -> bytes:
    """SHA-256 over what decides a model's tables: config, names, shapes, types, values.

    The statistics that policies come from are not in it.
    """
    network = {
        key: value
        for key, value in dataclasses.asdict(method.model).items()
        if key not in _NOT_HASHED
    }
    config = {
        "format": 1,
        "network": network,
        "levels": method.levels,
        "branching": method.branching,
        "parametrization": method.objective.parametrization if method.branching else "",
        "shape": list(method.data_shape),
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for path, value in sorted(arrays_by_name(params).items()):
        if path.split("/")[0] == _LOSSES:
            continue
        array = np.asarray(value)
        content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        digest.update(json.dumps([path, list(array.shape), array.dtype.name]).encode())
        digest.update(struct.pack("<Q", len(content)) + content)
    return digest.digest()


def profile(lanes: int) -> str:
    """Describes all that decides the last bits of float32 results, for the fast mode."""
    device = jax.devices()[0]
    facts = {
        "platform": device.platform,
        "device": device.device_kind,
        "driver": getattr(device.client, "platform_version", ""),
        "cpu": _cpu() if device.platform == "cpu" else "",
        "jaxlib": importlib.metadata.version("jaxlib"),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "optimized": os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "") in ("", "0"),
        "matmul": "highest",
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "lanes": lanes,
    }
    return ", ".join(f"{key}={value}" for key, value in facts.items())


def profile_hash(text: str) -> bytes:
    """First 4 bytes of SHA-256 of a profile."""
    return hashlib.sha256(text.encode()).digest()[:4]


def _cpu() -> str:
    """Model and instruction sets of the processor, in a word."""
    file = pathlib.Path("/proc/cpuinfo")
    if not file.exists():
        return f"{platform.machine()} {platform.processor()}"
    lines = file.read_text(errors="replace").splitlines()
    chosen = sorted(
        {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    )
    return hashlib.sha256("\n".join(chosen).encode()).hexdigest()[:12]
