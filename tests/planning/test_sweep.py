from typing import Any
from unittest import mock

from darl_jax.config import TrainConfig
from darl_jax.planning import sweep
from darl_jax.planning.memory import DoesNotFitError
from darl_jax.planning.roofline import Position, Roofline
from darl_jax.planning.step_plan import StepPlan
from darl_jax.planning.topology import Topology
from darl_jax.runtime.chips import CHIPS


class Device:
    platform, device_kind, process_index = "cpu", "cpu", 0


def test_the_squarest_meshes_come_first_and_each_takes_the_cheapest_step_that_fits(monkeypatch):
    tried = []

    def compile_plan(config: TrainConfig, topology: Any, *, records: int) -> StepPlan:
        """Fits with recomputation, and with 4 micro-batches where fsdp is below 8."""
        fsdp, remat, steps = config.mesh.fsdp, config.model.remat, config.accumulation_steps
        tried.append((fsdp, remat, steps))
        if remat == "none" or (fsdp < 8 and steps < 4):
            raise DoesNotFitError("the step needs more. Raise config.mesh.fsdp")
        times = Roofline(1.0, 1.0 / fsdp, 1.0, 1.0, 0.0)
        return mock.Mock(spec=StepPlan, config=config, times=times)

    monkeypatch.setattr(sweep, "compile_plan", compile_plan)
    devices: Any = tuple(Device() for _ in range(16))
    topology = Topology("h100:16", CHIPS["h100"], devices, (Position(0),) * 16, "CPU")
    plans = sweep.run(TrainConfig(), topology, records=1000, accumulations=[4, 1], compile_top=3)
    until_it_fits = [("none", 1), ("none", 4), ("dots", 1), ("dots", 4)]
    assert tried[:8] == [(fsdp, *each) for fsdp in (4, 2) for each in until_it_fits]
    assert tried[8:] == [(8, *each) for each in until_it_fits[:3]]
    assert [plan.config.mesh.fsdp for plan in plans] == [8, 4, 2]  # the fastest first
