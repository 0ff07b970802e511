"""Writes hlo_v5e_scan.txt and hlo_v5e_collectives.txt: two steps compiled for TPUs.

Needs libtpu beside JAX (0.0.42.1 with JAX 0.10.2 was used), but no TPU:

    TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost JAX_PLATFORMS=cpu \
        python tests/golden/make_hlo.py

`tests/planning/test_collectives.py` lists their collectives.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

LAYERS, BATCH, WIDTH = 3, 8192, 1024


def main() -> None:
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), devices=devices, axis_types=(AxisType.Auto,) * 2)
    folder = pathlib.Path(__file__).parent
    for name, compiled in (("scan", _scan(mesh)), ("collectives", _collectives(mesh))):
        text = re.sub(r", (metadata|backend_config)=\{.*", "", str(compiled.as_text()))
        text = re.sub(r"\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*", "\n", text)
        (folder / f"hlo_v5e_{name}.txt").write_text(text)


def _array(mesh: Mesh, shape: tuple[int, ...], *spec: object) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)


def _scan(mesh: Mesh) -> jax.stages.Compiled:
    """The gradient of a stack of dense layers, weights split over fsdp, examples over both."""
    examples = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.with_sharding_constraint(jnp.sin(x @ w), examples), None

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean(jax.lax.scan(layer, x, w)[0].astype(jnp.float32) ** 2)

    w = _array(mesh, (LAYERS, WIDTH, WIDTH), None, "fsdp")
    x = _array(mesh, (BATCH, WIDTH), ("data", "fsdp"))
    return jax.jit(jax.grad(loss), out_shardings=w.sharding).lower(w, x).compile()


def _collectives(mesh: Mesh) -> jax.stages.Compiled:
    """One of each kind, by hand; the dearer branch of a condition multiplies."""

    def step(x: jax.Array, y: jax.Array, w: jax.Array) -> tuple[jax.Array, ...]:
        ring = [(i, (i + 1) % 4) for i in range(4)]
        sent = jax.lax.ppermute(x, "fsdp", ring)
        turned = jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True)
        gathered = jax.lax.all_gather(y, ("data", "fsdp"), axis=0, tiled=True)
        scattered = jax.lax.psum_scatter(jnp.sin(x), "data", scatter_dimension=0, tiled=True)
        summed = jax.lax.psum(y, "data")
        chosen = jax.lax.cond(y[0, 0] > 0, lambda: x @ w, lambda: jnp.sin(x))
        return sent, turned, gathered, scattered, summed, chosen

    both = PartitionSpec(("data", "fsdp"))
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(both, both, PartitionSpec()),
        out_specs=(both, both, PartitionSpec(), both, PartitionSpec("fsdp"), both),
        check_vma=False,
    )
    x = _array(mesh, (BATCH, WIDTH), ("data", "fsdp"))
    y = _array(mesh, (256, WIDTH), ("data", "fsdp"))
    return jax.jit(mapped).lower(x, y, _array(mesh, (WIDTH, WIDTH))).compile()


if __name__ == "__main__":
    main()
