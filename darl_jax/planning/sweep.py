"""Search for the mesh and rematerialization policy that suit a config and a topology."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Sequence

from darl_jax.config import TrainConfig
from darl_jax.nn.blocks import REMAT_POLICIES
from darl_jax.planning.memory import DoesNotFitError
from darl_jax.planning.step_plan import StepPlan, compile_plan, with_model
from darl_jax.planning.tables import align, gib
from darl_jax.planning.topology import Topology
from darl_jax.training.sharding import MeshConfig, check_batch, make_mesh


def run(
    config: TrainConfig,
    topology: Topology,
    *,
    records: int,
    accumulations: Sequence[int],
    compile_top: int,
) -> list[StepPlan]:
    """Compiles steps on several meshes, and returns the plans that fit, fastest first.

    The meshes whose data and fsdp axes are most alike come first: with a long fsdp axis devices
    wait for parameters, with a short one each runs the optimizer on most of them. On each mesh
    policies are tried from the least recomputation, and micro-batches from the largest, until one
    fits.

    Args:
      config: its mesh (but for tensor), `model.remat` and `accumulation_steps` are replaced.
      topology: the devices.
      records: of the training split.
      accumulations: values of `accumulation_steps`.
      compile_top: number of meshes to compile.

    Raises:
      ValueError: the topology has no rates, or no mesh suits it.
      DoesNotFitError: nothing fits.
    """
    if topology.chip is None:
        raise ValueError(f"--sweep ranks by time, and --topology={topology.name} has no rates")
    policies = list(REMAT_POLICIES) if _remat(config) else [""]
    meshes = sorted(
        _meshes(config, topology, max(accumulations)),
        key=lambda mesh: abs(math.log(mesh.data / mesh.fsdp)),
    )
    if not meshes:
        raise ValueError(
            f"no mesh of {len(topology.devices)} devices divides config.batch_size="
            f"{config.batch_size} with accumulation_steps={max(accumulations)}"
        )
    plans = []
    for mesh in meshes[:compile_top]:
        for remat, steps in itertools.product(policies, sorted(accumulations)):
            candidate = dataclasses.replace(
                with_model(config, remat=remat), mesh=mesh, accumulation_steps=steps
            )
            try:
                plans.append(compile_plan(candidate, topology, records=records))
                break
            except DoesNotFitError as error:
                print(f"... {str(error).split('. ')[0]}", file=sys.stderr, flush=True)
    if not plans:
        raise DoesNotFitError(
            f"no step on {len(meshes[:compile_top])} meshes fits {topology.name}. Raise "
            "config.accumulation_steps, lower config.batch_size or take more or larger chips"
        )
    return sorted(plans, key=_seconds)


def _meshes(
    config: TrainConfig, topology: Topology, accumulation_steps: int
) -> Iterator[MeshConfig]:
    """Yields all meshes of the topology's devices that divide the batch and the model."""
    rest, odd = divmod(len(topology.devices), config.mesh.tensor)
    for fsdp in range(1, rest + 1):
        if odd or rest % fsdp:
            continue
        mesh_config = MeshConfig(rest // fsdp, fsdp, config.mesh.tensor)
        try:
            mesh = make_mesh(mesh_config, topology.devices)
            check_batch(config.batch_size, accumulation_steps, mesh)
            config.method.check_mesh(mesh)
        except (ValueError, NotImplementedError):
            continue  # The slices or the torus cannot be cut like this.
        yield mesh_config


def _seconds(plan: StepPlan) -> float:
    """Half-way between perfect overlap and none."""
    assert plan.times is not None
    return (plan.times.step + plan.times.step_without_overlap) / 2


def _remat(config: TrainConfig) -> str:
    return getattr(config.model, "remat", "")


def overrides(config: TrainConfig) -> str:
    """Returns the flags for the mesh, policy and micro-batches of a config."""
    mesh = config.mesh
    remat = f"--config.model.remat={_remat(config)} " if _remat(config) else ""
    return (
        f"--config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} "
        f"--config.mesh.tensor={mesh.tensor} {remat}"
        f"--config.accumulation_steps={config.accumulation_steps}"
    )


def table(plans: Sequence[StepPlan]) -> str:
    """Formats the plans, and the flags of the first."""
    rows = [("data x fsdp x tensor", "remat", "batch", "memory", "step", "bound", "of peak")]
    for plan in plans:
        mesh, times = plan.config.mesh, plan.times
        assert times is not None
        rows.append(
            (
                f"{mesh.data} x {mesh.fsdp} x {mesh.tensor}",
                _remat(plan.config) or "-",
                f"{plan.config.batch_size} / {plan.config.accumulation_steps}",
                gib(plan.memory.peak),
                f"{times.step * 1e3:.1f} .. {times.step_without_overlap * 1e3:.1f} ms",
                times.bound,
                f"{times.compute_fraction:.2f}",
            )
        )
    head = f"{len(plans)} compiled steps that fit, from perfect overlap to none"
    return "\n".join([head, *align(rows), f"Best: {overrides(plans[0].config)}"])
