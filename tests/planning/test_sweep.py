import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from darl_jax.config import TrainConfig
from darl_jax.planning import sweep
from darl_jax.planning.collectives import Collective
from darl_jax.training.sharding import AXES, MeshConfig

KERNEL = 768 * 3072  # of 768 rows


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((8, 1), [("all-reduce", "data", 1, 2 * KERNEL)]),
        (
            (1, 8),
            [("all-gather", "fsdp", 2, 2 * KERNEL), ("reduce-scatter", "fsdp", 1, 2 * KERNEL)],
        ),
        # 768 / 64 rows are too few to be gathered or scattered.
        ((1, 64), [("all-reduce", "fsdp", 2, 2 * KERNEL), ("all-reduce", "fsdp", 1, 2 * KERNEL)]),
        (
            (2, 4),
            [
                ("all-gather", "fsdp", 2, 2 * KERNEL),
                ("reduce-scatter", "fsdp", 1, 2 * KERNEL),
                ("all-reduce", "data", 1, 2 * KERNEL // 4),
            ],
        ),
    ],
)
@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_a_kernel_is_gathered_twice_and_its_gradient_reduced_once_in_each_micro_batch(
    sizes: tuple[int, int], expected: list[tuple[str, str, int, int]], accumulation_steps: int
) -> None:
    mesh = AbstractMesh((*sizes, 1), AXES)
    layout = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    params = {"kernel": jax.ShapeDtypeStruct((768, 3072), jnp.float32, sharding=layout)}
    axes = dict(mesh.shape)
    assert sweep.parameter_collectives(params, axes, accumulation_steps) == [
        Collective(kind, (axis,), size, count * accumulation_steps, axes[axis])
        for kind, axis, count, size in expected
    ]


def test_overrides_are_keys_that_the_command_line_takes() -> None:
    config = dataclasses.replace(TrainConfig(), mesh=MeshConfig(2, 4, 1), accumulation_steps=2)
    assert sweep.overrides(config) == (
        "--config.mesh.data=2 --config.mesh.fsdp=4 --config.mesh.tensor=1 "
        "--config.model.remat=none --config.accumulation_steps=2"
    )
