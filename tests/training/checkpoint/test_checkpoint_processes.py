"""Two processes save and restore together: the same bits as one, and neither waits for ever."""

import os
import pathlib
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from darl_jax.training.checkpoint import Checkpointer, SaveTimeoutError
from tests import programs

SPECS = {"kernel": P("fsdp", "tensor"), "other": P(None, "fsdp"), "half": P("fsdp"), "n": P()}


def values(step: int) -> dict[str, np.ndarray]:
    random_numbers = np.random.default_rng(step)
    return {
        "kernel": random_numbers.normal(size=(400, 100)).astype(np.float32),
        "other": random_numbers.integers(0, 2**32, (6, 8), np.uint32),
        "half": (np.arange(16) / (step + 3)).astype(jnp.bfloat16),
        "n": np.int32(step),
    }


def state(step: int, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    return {
        name: jax.make_array_from_callback(
            value.shape, NamedSharding(mesh, SPECS[name]), lambda index, value=value: value[index]
        )
        for name, value in values(step).items()
    }


def assert_shards_are(restored: dict[str, jax.Array], step: int) -> None:
    for name, value in values(step).items():
        for shard in restored[name].addressable_shards:
            assert np.asarray(shard.data).tobytes() == value[shard.index].tobytes(), name


@pytest.mark.process
def test_two_processes_restore_what_one_wrote_and_agree_on_what_is_damaged(tmp_path):
    device = SingleDeviceSharding(jax.devices()[0])
    one = jax.tree.map(lambda value: jax.device_put(value, device), values(1))
    checkpointer = Checkpointer(tmp_path, keep_last=9, keep_every=0)
    checkpointer.save(1, one, {})
    checkpointer.close()

    address = programs.free_address()
    processes = [
        programs.start(__file__, address, i, tmp_path, JAX_NUM_CPU_DEVICES="2") for i in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    warnings = [line for _, errors in outputs for line in errors.splitlines() if "moved" in line]
    assert len(warnings) == 1, outputs
    assert "checkpoint of step 3 cannot be used (process 1 cannot read its part)" in warnings[0]
    assert "step 2 is used" in warnings[0]
    assert "Process 1: the checkpoint" in outputs[1][1]  # with the reason

    checkpointer = Checkpointer(tmp_path, keep_last=9, keep_every=0)
    restored, step = checkpointer.restore_latest(one)
    assert step == 3
    assert_shards_are(restored, 3)
    # The save that failed in one process can be repeated, and nothing is left of it.
    checkpointer.save(4, restored, {})
    checkpointer.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2", "3", "4"]
    assert os.listdir(tmp_path / "damaged_checkpoints") == ["3"]


def agree(workdir: pathlib.Path) -> None:
    """Run by each of the two processes of the test above."""
    me = jax.process_index()
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    checkpointer = Checkpointer(workdir, keep_last=9, keep_every=0)
    with jax.set_mesh(mesh):
        restored, step = checkpointer.restore_latest(state(0, mesh))
        assert step == 1
        assert_shards_are(restored, 1)
        for step in (2, 3):
            checkpointer.save(step, state(step, mesh), {"step": step})
        checkpointer.wait()

        # A check that fails in one process ends the search in both.
        def check(config: dict, records: str, step: int) -> None:
            if me == 1:
                raise ValueError(f"not with {config} at {step}")

        message = "not with {'step': 3} at 3" if me == 1 else "process 1 cannot use .*/3$"
        with pytest.raises(ValueError if me == 1 else OSError, match=message):
            checkpointer.restore_latest(state(0, mesh), check)

        # What process 1 wrote, and reads again on the same mesh, is cut: only it sees that.
        if me == 0:
            folder = workdir / "checkpoints" / "3" / "state" / "ocdbt.process_1" / "d"
            for file in folder.iterdir():
                os.truncate(file, file.stat().st_size // 2)
        multihost_utils.sync_global_devices("cut")
        restored, step = checkpointer.restore_latest(state(0, mesh))
        assert step == 2
        assert_shards_are(restored, 2)
        checkpointer.save(3, state(3, mesh), {"step": 3})
        checkpointer.close()

        # The disk of process 1 is full. It knows at once, the other one after the time-out.
        checkpointer = Checkpointer(workdir, keep_last=1, keep_every=0, timeout_seconds=3)
        if me == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        checkpointer.save(4, state(4, mesh), {})
        began = time.monotonic()
        with pytest.raises(OSError, match="step 4") as error:
            checkpointer.wait()
        assert isinstance(error.value, SaveTimeoutError) == (me == 0)
        assert me == 0 or time.monotonic() - began < 3
        os._exit(0)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
    agree(pathlib.Path(sys.argv[3]))
