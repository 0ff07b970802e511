"""Which mesh and which rematerialization suit a config and a topology."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from darl_jax.config import TrainConfig
from darl_jax.nn.vit import REMAT_POLICIES
from darl_jax.planning import roofline
from darl_jax.planning.hlo_collectives import Collective
from darl_jax.planning.roofline import Roofline
from darl_jax.planning.step_memory import DoesNotFitError, shard_bytes
from darl_jax.planning.step_plan import (
    StepPlan,
    align,
    collective_times,
    compile_plan,
)
from darl_jax.planning.topology import Topology
from darl_jax.runtime.chips import Chip
from darl_jax.training.optimizers import build_optimizer
from darl_jax.training.sharding import MeshConfig, check_batch, make_mesh
from darl_jax.training.state import TrainState, init_state, laid_out

_WIDEST_TENSOR = 8  # Four all-reduces of activations a block: beyond this never the best.
# An estimate of memory may be this much too high: only what is above is not compiled.
_DOUBT = 1.3
# Activations of one layer that are larger than this go through the main memory more often.
_KEPT_ON_CHIP = 16 * 2**20
# With fewer rows of a kernel on a device the TPU compiler was seen to send whole arrays: with 48
# rows sums of gradients were not scattered, with 20 parameters were not gathered.
_SCATTERED_ROWS, _GATHERED_ROWS = 64, 24
_LANES = 128  # A TPU pads the last dimension of what it keeps to this.


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is thought of a candidate before it is compiled."""

    memory: float
    times: Roofline


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run the config, with what is known of it so far."""

    config: TrainConfig
    estimate: Estimate
    plan: StepPlan | None = None
    refused: str = ""  # why it does not fit, where the compiler said so


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The compiled candidates, the best first and those that do not fit last."""

    candidates: tuple[Candidate, ...]
    tried: int
    best_plan: StepPlan


def run(
    config: TrainConfig,
    topology: Topology,
    *,
    train_images: int,
    batch_sizes: Sequence[int],
    accumulations: Sequence[int],
    compile_top: int,
    say: Callable[[str], None],
) -> Ranking:
    """Estimates every candidate, compiles the most promising and ranks those that fit.

    Args:
      config: what is trained; its mesh and `model.remat` are replaced.
      topology: the devices.
      train_images: records of the training split.
      batch_sizes: tried instead of the config's, where there are any.
      accumulations: the same for `accumulation_steps`.
      compile_top: how many candidates that fit are compiled; at most twice as many are tried.
      say: is told of the progress.

    Raises:
      ValueError: the topology has no rates to rank by, or no candidate suits it.
      DoesNotFitError: none of what was compiled fits.
    """
    if topology.chip is None:
        raise ValueError(f"--sweep ranks by time, and --topology={topology.name} has no rates")
    candidates = sorted(
        estimates(
            config,
            topology,
            topology.chip,
            batch_sizes=batch_sizes or [config.batch_size],
            accumulations=accumulations or [config.accumulation_steps],
        ),
        key=lambda each: _seconds_per_image(each.config, each.estimate.times),
    )
    if not candidates:
        raise ValueError(
            f"no mesh of {len(topology.devices)} devices divides the batch of {config.batch_size} "
            f"and the {config.model.num_heads} heads"
        )
    limit = topology.chip.usable_hbm_bytes
    promising = [each for each in candidates if each.estimate.memory <= _DOUBT * limit]
    say(f"{len(candidates)} candidates, of which {len(promising)} may fit {topology.chip.name}")
    done: list[Candidate] = []
    best: tuple[float, StepPlan] | None = None
    for each in promising[: 2 * compile_top]:
        try:
            plan = compile_plan(each.config, topology, train_images=train_images, say=say)
        except DoesNotFitError as error:
            done.append(dataclasses.replace(each, refused=str(error).split(". ")[0]))
            continue
        done.append(dataclasses.replace(each, plan=plan))
        seconds = _rank(done[-1])
        if best is None or seconds < best[0]:
            best = seconds, plan
        if sum(one.plan is not None for one in done) == compile_top:
            break
    if best is None:
        raise DoesNotFitError(
            f"none of {len(candidates)} candidates fits {topology.name}. Raise "
            "config.accumulation_steps, lower config.batch_size or take more or larger chips"
        )
    return Ranking(tuple(sorted(done, key=_rank)), len(candidates), best[1])


def _seconds_per_image(config: TrainConfig, times: Roofline) -> float:
    """Half-way between perfect overlap and none: ties of the one are broken by the other."""
    return (times.step + times.step_without_overlap) / 2 / config.batch_size


def _rank(candidate: Candidate) -> float:
    if candidate.plan is None or candidate.plan.times is None:
        return math.inf
    return _seconds_per_image(candidate.config, candidate.plan.times)


def estimates(
    config: TrainConfig,
    topology: Topology,
    chip: Chip,
    *,
    batch_sizes: Sequence[int],
    accumulations: Sequence[int],
) -> Iterator[Candidate]:
    """Every mesh, batch and policy that suits the devices, estimated without compiling."""
    method = config.method
    optimizer = build_optimizer(config.optimizer, 0.0, method)
    builder = method.init
    shapes = jax.eval_shape(
        lambda key: init_state(builder, optimizer, key, ema=config.ema_decay > 0), jax.random.key(0)
    )
    for mesh_config in meshes(len(topology.devices)):
        try:
            mesh = make_mesh(mesh_config, topology.devices)
        except (ValueError, NotImplementedError):
            continue  # The slices or the torus cannot be cut like this.
        state = laid_out(shapes, mesh)
        for batch_size, steps, remat in itertools.product(
            batch_sizes, accumulations, REMAT_POLICIES
        ):
            candidate = dataclasses.replace(
                config,
                mesh=mesh_config,
                batch_size=batch_size,
                accumulation_steps=steps,
                model=dataclasses.replace(config.model, remat=remat),
            )
            try:
                check_batch(candidate.batch_size, candidate.accumulation_steps, mesh)
                candidate.method.check_mesh(mesh)
            except ValueError:
                continue
            yield Candidate(candidate, estimate(candidate, topology, chip, mesh, state))


def meshes(devices: int) -> Iterator[MeshConfig]:
    """All (data, fsdp, tensor) that multiply to a number of devices."""
    for tensor in range(1, min(devices, _WIDEST_TENSOR) + 1):
        if devices % tensor == 0:
            rest = devices // tensor
            for fsdp in range(1, rest + 1):
                if rest % fsdp == 0:
                    yield MeshConfig(rest // fsdp, fsdp, tensor)


def estimate(
    config: TrainConfig, topology: Topology, chip: Chip, mesh: Mesh, state: TrainState
) -> Estimate:
    """Memory and time of a step by counting what a block keeps, reads and sends.

    The counts for each token were fitted to compiled steps of ViT-B/16 and ViT-H/14 for TPU v5e.
    """
    model, sizes = config.model, dict(mesh.shape)
    method: Any = config.method
    tokens = method.tokens
    local = config.batch_size / sizes["data"] / sizes["fsdp"] * tokens
    width, tensor = model.width, sizes["tensor"]
    hidden = model.mlp_dim / tensor
    weights = model.num_heads / tensor * math.ceil(tokens / _LANES) * _LANES
    blocks = model.depth + config.objective.patch_decoder.layers * getattr(
        config.objective, "draws", 1
    )
    # Values of 2 bytes that the forward pass of a block keeps for each token.
    kept = {
        "none": (2 + 6 / tensor) * width + 2 * width / tensor + hidden + weights,
        "dots": (2 + 3 / tensor) * width + hidden,
        "full": width,
    }[model.remat]
    working = 10 * weights + 10 * hidden + 16 * width
    at_once = local / config.accumulation_steps
    activations = at_once * (2 * kept * blocks + working)
    parameters = shard_bytes(state.params)
    memory = parameters + shard_bytes(state) + activations

    executed = {"none": 1.0, "dots": 1.05, "full": 4 / 3}[model.remat]
    flops = config.batch_size * config.method.flops() / mesh.size
    whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)) * 2 // tensor
    moved = collective_times(_sent(config, sizes, whole, local, blocks), mesh, topology)
    # Values that a block's forward pass writes and reads again; the backward pass does twice that.
    values = 12 * width + 3 * hidden + 3 * weights
    passes = {"none": 3.0, "dots": 3.3, "full": 4.0}[model.remat]
    if 2 * at_once * width > _KEPT_ON_CHIP:
        passes *= 2
    traffic = 2 * local * blocks * values * passes
    return Estimate(
        memory,
        Roofline(
            model_compute=roofline.compute_seconds(flops, chip),
            compute=roofline.compute_seconds(flops * executed, chip),
            hbm=roofline.hbm_seconds(traffic + 10 * parameters, chip),
            interconnect=sum(each.interconnect_seconds for each in moved),
            network=sum(each.network_seconds for each in moved),
        ),
    )


def _sent(
    config: TrainConfig, sizes: dict[str, int], whole: int, local: float, blocks: int
) -> list[Collective]:
    """What the parameters (`whole` bytes in bfloat16) and the activations make necessary."""
    data, fsdp, tensor = sizes["data"], sizes["fsdp"], sizes["tensor"]
    sent = []
    if fsdp > 1:  # gathered forward and backward, gradients scattered
        times, rows = config.accumulation_steps, config.model.width // fsdp
        gather = "all-gather" if rows >= _GATHERED_ROWS else "all-reduce"
        scatter = "reduce-scatter" if rows >= _SCATTERED_ROWS else "all-reduce"
        sent.append(Collective(gather, ("fsdp",), whole, 2 * times, fsdp))
        sent.append(Collective(scatter, ("fsdp",), whole, times, fsdp))
    if data > 1:
        sent.append(
            Collective("all-reduce", ("data",), whole // fsdp, config.accumulation_steps, data)
        )
    if tensor > 1:  # after attention and MLP, forward and backward
        activations = int(local * config.model.width * 2)
        sent.append(Collective("all-reduce", ("tensor",), activations, 4 * blocks, tensor))
    return sent


def overrides(config: TrainConfig) -> str:
    """What to add to a command line for this candidate."""
    mesh = config.mesh
    return (
        f"--config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} "
        f"--config.mesh.tensor={mesh.tensor} --config.model.remat={config.model.remat} "
        f"--config.batch_size={config.batch_size} "
        f"--config.accumulation_steps={config.accumulation_steps}"
    )


def table(ranking: Ranking) -> str:
    """The ranking, and what to paste for the best."""
    rows = [
        ("data x fsdp x tensor", "remat", "batch", "memory", "step", "bound", "of peak", "estimate")
    ]
    for each in ranking.candidates:
        mesh, plan = each.config.mesh, each.plan
        name = f"{mesh.data} x {mesh.fsdp} x {mesh.tensor}"
        batch = f"{each.config.batch_size} / {each.config.accumulation_steps}"
        row = (name, each.config.model.remat, batch)
        thought = each.estimate
        guess = f"{roofline.gib(thought.memory)}, {thought.times.step * 1e3:.1f} ms"
        if plan is None or plan.times is None:
            rows.append((*row, "-", each.refused, "-", "-", guess))
            continue
        times = plan.times
        span = f"{times.step * 1e3:.1f} .. {times.step_without_overlap * 1e3:.1f} ms"
        fraction = f"{times.compute_fraction:.2f}"
        rows.append((*row, roofline.gib(plan.memory.peak), span, times.bound, fraction, guess))
    return "\n".join(
        [
            f"{len(ranking.candidates)} of {ranking.tried} candidates were compiled; step is "
            "from perfect overlap to none",
            *align(rows),
            f"Best: {overrides(ranking.best_plan.config)}",
        ]
    )
