import dataclasses

import numpy as np
import pytest

from darl_jax.config import TrainConfig
from darl_jax.planning import sweep
from darl_jax.planning.hlo_collectives import Collective
from darl_jax.training.sharding import MeshConfig

MILLION = 10**6


def test_meshes_are_all_ways_to_multiply_to_the_devices_with_a_narrow_tensor_axis() -> None:
    found = [(mesh.data, mesh.fsdp, mesh.tensor) for mesh in sweep.meshes(16)]
    assert len(found) == len(set(found)) == 5 + 4 + 3 + 2
    assert all(np.prod(shape) == 16 and shape[2] <= 8 for shape in found)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((8, 1, 1), [("all-reduce", "data", 48 * MILLION, 1)]),
        (
            (1, 8, 1),
            [("all-gather", "fsdp", 48 * MILLION, 2), ("reduce-scatter", "fsdp", 48 * MILLION, 1)],
        ),
        (  # 768 / 64 rows are too few to be gathered or scattered
            (1, 64, 1),
            [("all-reduce", "fsdp", 48 * MILLION, 2), ("all-reduce", "fsdp", 48 * MILLION, 1)],
        ),
        (
            (2, 4, 1),
            [
                ("all-gather", "fsdp", 48 * MILLION, 2),
                ("reduce-scatter", "fsdp", 48 * MILLION, 1),
                ("all-reduce", "data", 12 * MILLION, 1),
            ],
        ),
        ((1, 1, 4), [("all-reduce", "tensor", 100 * 768 * 2, 4 * 12)]),
    ],
)
def test_what_a_mesh_sends_is_what_its_layout_needs(
    sizes: tuple[int, int, int], expected: list[tuple[str, str, int, int]]
) -> None:
    axes = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    sent = sweep._sent(TrainConfig(), axes, whole=48 * MILLION, local=100.0, blocks=12)
    assert sent == [
        Collective(kind, (axis,), size, count, axes[axis]) for kind, axis, size, count in expected
    ]


def test_micro_batches_send_the_parameters_again() -> None:
    config = dataclasses.replace(TrainConfig(), accumulation_steps=4)
    axes = {"data": 2, "fsdp": 4, "tensor": 1}
    sent = sweep._sent(config, axes, whole=48 * MILLION, local=100.0, blocks=12)
    assert [each.count for each in sent] == [8, 4, 4]


def test_overrides_are_keys_that_the_command_line_takes() -> None:
    config = dataclasses.replace(TrainConfig(), mesh=MeshConfig(2, 4, 1), accumulation_steps=2)
    assert sweep.overrides(config) == (
        "--config.mesh.data=2 --config.mesh.fsdp=4 --config.mesh.tensor=1 "
        "--config.model.remat=none --config.batch_size=4096 --config.accumulation_steps=2"
    )
