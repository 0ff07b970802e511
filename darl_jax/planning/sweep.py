"""Search for the mesh and rematerialization policy that suit a config and a topology."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from darl_jax.config import TrainConfig
from darl_jax.nn.blocks import REMAT_POLICIES
from darl_jax.planning.collectives import Collective
from darl_jax.planning.memory import DoesNotFitError, shard_bytes
from darl_jax.planning.step_plan import StepPlan, collective_times, compile_plan, with_model
from darl_jax.planning.tables import align, gib
from darl_jax.planning.topology import Topology
from darl_jax.training.optimizers import build_optimizer
from darl_jax.training.sharding import MeshConfig, check_batch, make_mesh
from darl_jax.training.state import TrainState, abstract_state

# Rows of a kernel on a device, below which the TPU compiler was seen to send whole arrays: with 48
# rows gradients were not scattered, with 20 parameters were not gathered.
_SCATTERED_ROWS, _GATHERED_ROWS = 64, 24


def run(
    config: TrainConfig,
    topology: Topology,
    *,
    records: int,
    accumulations: Sequence[int],
    compile_top: int,
) -> list[StepPlan]:
    """Compiles steps on the most promising meshes, and returns the plans that fit, fastest first.

    Meshes are tried in the order of the seconds that their parameters take to travel. On each mesh
    policies are tried from the least recomputation, and micro-batches from the largest, until one
    fits.

    Args:
      config: its mesh, `model.remat` and `accumulation_steps` are replaced.
      topology: the devices.
      records: of the training split.
      accumulations: values of `accumulation_steps`.
      compile_top: number of meshes on which a step is compiled.

    Raises:
      ValueError: the topology has no rates, or no mesh suits it.
      DoesNotFitError: nothing fits.
    """
    if topology.chip is None:
        raise ValueError(f"--sweep ranks by time, and --topology={topology.name} has no rates")
    limit = topology.chip.usable_hbm_bytes
    candidates: list[tuple[float, int, TrainConfig]] = []
    for changed, mesh, state in _meshes(config, topology, max(accumulations)):
        if shard_bytes(state) < limit:
            seconds = parameter_seconds(state, mesh, topology, config.accumulation_steps)
            candidates.append((seconds, len(candidates), changed))
    if not candidates:
        raise ValueError(
            f"no mesh of {len(topology.devices)} devices divides config.batch_size="
            f"{config.batch_size} and has room for the parameters"
        )
    policies = list(REMAT_POLICIES) if _remat(config) else [""]
    plans = []
    for _, _, changed in sorted(candidates)[:compile_top]:
        for remat, steps in itertools.product(policies, sorted(accumulations)):
            candidate = dataclasses.replace(
                with_model(changed, remat=remat), accumulation_steps=steps
            )
            try:
                plans.append(compile_plan(candidate, topology, records=records))
                break
            except DoesNotFitError as error:
                print(f"... {error}".split(". ")[0], file=sys.stderr, flush=True)
    if not plans:
        raise DoesNotFitError(
            f"none of the {compile_top} most promising meshes fits {topology.name}. Raise "
            "config.accumulation_steps, lower config.batch_size or take more or larger chips"
        )
    return sorted(plans, key=seconds_per_step)


def _meshes(
    config: TrainConfig, topology: Topology, accumulation_steps: int
) -> Iterator[tuple[TrainConfig, Mesh, TrainState]]:
    """Yields the config on all meshes that suit the devices, with the shapes of the state."""
    method = config.method
    optimizer = build_optimizer(config.optimizer, 0.0, method)
    devices, tensor = len(topology.devices), config.mesh.tensor
    for fsdp in range(1, devices // tensor + 1):
        if devices % (fsdp * tensor):
            continue
        changed = dataclasses.replace(
            config,
            mesh=MeshConfig(devices // (fsdp * tensor), fsdp, tensor),
            accumulation_steps=accumulation_steps,
        )
        try:
            mesh = make_mesh(changed.mesh, topology.devices)
            check_batch(changed.batch_size, accumulation_steps, mesh)
            method.check_mesh(mesh)
        except (ValueError, NotImplementedError):
            continue  # The slices or the torus cannot be cut like this.
        yield changed, mesh, abstract_state(method.init, optimizer, mesh, ema=config.ema_decay > 0)


def parameter_collectives(
    params: PyTree, sizes: Mapping[str, int], accumulation_steps: int
) -> list[Collective]:
    """Returns the collectives of a step on parameters and gradients, in bfloat16.

    In each micro-batch a parameter is gathered over fsdp for the forward and the backward pass, and
    its gradient is scattered over fsdp and summed over data.

    Args:
      params: shapes with shardings.
      sizes: of the mesh axes.
      accumulation_steps: micro-batches of a step.
    """
    sent = []
    for leaf in jax.tree.leaves(params):
        part, spec = leaf.sharding.shard_shape(leaf.shape), tuple(leaf.sharding.spec)
        size, fsdp, data = 2 * math.prod(part), sizes["fsdp"], sizes["data"]
        if fsdp > 1 and "fsdp" in spec:
            rows = part[spec.index("fsdp")]
            gather = "all-gather" if rows >= _GATHERED_ROWS else "all-reduce"
            scatter = "reduce-scatter" if rows >= _SCATTERED_ROWS else "all-reduce"
            sent.append(Collective(gather, ("fsdp",), size * fsdp, 2 * accumulation_steps, fsdp))
            sent.append(Collective(scatter, ("fsdp",), size * fsdp, accumulation_steps, fsdp))
        if data > 1:
            sent.append(Collective("all-reduce", ("data",), size, accumulation_steps, data))
    return sent


def parameter_seconds(
    state: TrainState, mesh: Mesh, topology: Topology, accumulation_steps: int
) -> float:
    """Returns the seconds of `parameter_collectives` and of the optimizer's memory traffic."""
    assert topology.chip is not None
    sent = parameter_collectives(state.params, mesh.shape, accumulation_steps)
    optimizer = 2 * shard_bytes(state) / topology.chip.hbm_bytes_per_second
    times = collective_times(sent, mesh, topology)
    return optimizer + sum(each.interconnect_seconds + each.network_seconds for each in times)


def seconds_per_step(plan: StepPlan) -> float:
    """Returns the seconds half-way between perfect overlap and none."""
    assert plan.times is not None
    return (plan.times.step + plan.times.step_without_overlap) / 2


def overrides(config: TrainConfig) -> str:
    """Returns the flags for the mesh, policy and micro-batches of a config."""
    mesh = config.mesh
    remat = f"--config.model.remat={config.model.remat} " if _remat(config) else ""
    return (
        f"--config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} "
        f"--config.mesh.tensor={mesh.tensor} {remat}"
        f"--config.accumulation_steps={config.accumulation_steps}"
    )


def _remat(config: TrainConfig) -> str:
    return getattr(config.model, "remat", "")


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
    return "\n".join(
        [
            f"{len(plans)} compiled steps that fit, from perfect overlap to none",
            *align(rows),
            f"Best: {overrides(plans[0].config)}",
        ]
    )
