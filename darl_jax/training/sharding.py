"""Layout of every array over the devices: one mesh and one ordered table.

The mesh has three axes: `data` (parameters are copied), `fsdp` (parameters are split and gathered
when they are used) and `tensor` (heads and MLP channels are split). Batches are split over `data`
and `fsdp` together.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from darl_jax.nn.mesh_axes import AXES, BATCH_AXES

# The first pattern that is found in a parameter's path decides. Stacked blocks have a leading layer
# dimension. A path that no pattern matches has its largest divisible dimension split over `fsdp`.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (
        r"(blocks/attention/(query|key|value)|query_stream/query)/kernel$",
        PartitionSpec(None, "fsdp", "tensor"),
    ),
    (
        r"(blocks/attention/(query|key|value)|query_stream/query)/bias$",
        PartitionSpec(None, "tensor"),
    ),
    (r"blocks/attention/out/kernel$", PartitionSpec(None, "tensor", "fsdp")),
    (r"blocks/mlp/(up|gate)/kernel$", PartitionSpec(None, "fsdp", "tensor")),
    (r"blocks/mlp/(up|gate)/bias$", PartitionSpec(None, "tensor")),
    (r"blocks/mlp/down/kernel$", PartitionSpec(None, "tensor", "fsdp")),
)

_SMALLEST_SPLIT = 2**14  # Gathering fewer elements than this costs more than it saves.


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 for one of them takes the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices, laid out so that neighbors in `tensor` and `fsdp` are close.

    Several slices of TPUs are joined along `data`, so that the slow network between them carries
    the gradients and nothing else.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    wanted = f"config.mesh=(data={config.data}, fsdp={config.fsdp}, tensor={config.tensor})"
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"{wanted}: sizes are positive, and at most one of them is -1")
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise ValueError(f"{wanted} does not fit the {len(devices)} devices that there are")
    # Only TPUs are cut into slices, and where there is one slice it may have no number.
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if on_tpu else 1
    if sizes[0] % slices:
        raise ValueError(
            f"{wanted}: data is {sizes[0]} and must be a multiple of the {slices} slices, so that "
            "fsdp and tensor stay inside a slice"
        )
    inside = [sizes[0] // slices, *sizes[1:]]
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            inside, [slices, 1, 1], devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Raises ValueError, which names the keys, where a batch cannot be split over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = shards * accumulation_steps
    if batch_size % parts:
        raise ValueError(
            f"config.batch_size={batch_size} must be a multiple of {parts}: {shards} devices along "
            f"mesh.data and mesh.fsdp, times accumulation_steps={accumulation_steps}"
        )
    process = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(shards, -1)
    if (process != process[:, :1]).any():
        # Each process reads rows of its own, and these devices share theirs.
        raise ValueError(
            f"config.mesh.tensor={mesh.shape['tensor']} joins devices of several processes; it "
            "must stay within one"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over `data` and `fsdp`; whatever else an array has is whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def partition_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The layout of the parameter at `path` (as in 'backbone/blocks/mlp/up/kernel').

    An axis of the table that does not divide its dimension leaves that dimension whole.
    """
    sizes = dict(mesh.shape)
    for pattern, spec in RULES:
        if re.search(pattern, path):
            return PartitionSpec(
                *(
                    axis if axis is None or dim % sizes[axis] == 0 else None
                    for axis, dim in zip(spec, shape, strict=True)
                )
            )
    if math.prod(shape) < _SMALLEST_SPLIT or sizes["fsdp"] == 1:
        return PartitionSpec()
    divisible = [i for i, dim in enumerate(shape) if dim % sizes["fsdp"] == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda i: shape[i])
    return PartitionSpec(*("fsdp" if i == largest else None for i in range(len(shape))))


def tree_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for every leaf by its path; optimizer moments follow their parameters."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def global_array(batch: PyTree, mesh: Mesh) -> PyTree:
    """Each process's rows of a batch as one global array, split over `data` and `fsdp`."""
    sharding = batch_sharding(mesh)

    def make(rows: np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(sharding, rows)

    # Of several processes JAX takes it for an implicit transfer.
    with jax.transfer_guard("allow"):
        return jax.tree.map(make, batch)
