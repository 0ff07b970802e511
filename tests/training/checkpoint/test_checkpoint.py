"""Checkpoints: complete or ignored, bit for bit, on any mesh, with errors that say what is off."""

import json
import logging
import os
import pathlib
import resource
import signal
import subprocess
import sys
import textwrap
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from jax.sharding import SingleDeviceSharding

from darl_jax.training.checkpoint import (
    Checkpointer,
    DamagedCheckpointError,
    config_differences,
    restore_params,
)
from darl_jax.training.checkpoint import reading as checkpoint_reading

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
CONFIG = {"batch_size": 8, "model": {"width": 4, "shape": (1, 2)}, "nothing": None}


class OutOfOrder(NamedTuple):
    z: jax.Array
    a: jax.Array


def make_state(seed: int = 0, width: int = 4) -> dict:
    """A state with what a real one has: stacked blocks, optax's named tuples, several types."""
    key = jax.random.key(seed)
    params = {
        "backbone": {
            "blocks": {"mlp": {"up": {"kernel": jax.random.normal(key, (2, 4, width))}}},
            "half": jnp.linspace(-1, 1, 8, dtype=jnp.bfloat16),
        },
        "odd": jnp.array([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-3, 10))
    )
    return {
        "step": jnp.int32(seed),
        "params": params,
        "sums": OutOfOrder(jnp.float32(1), jnp.float32(2)),
        "opt_state": jax.tree.map(lambda leaf: leaf + 1, optimizer.init(params)),
    }


def abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=SingleDeviceSharding(jax.devices()[0])
        ),
        state,
    )


def assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def steps_in(workdir) -> list[int]:
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir())


@pytest.fixture
def make_checkpointer(tmp_path):
    made = []

    def make(workdir=tmp_path, *, keep_last=3, keep_every=0) -> Checkpointer:
        made.append(Checkpointer(workdir, keep_last=keep_last, keep_every=keep_every))
        return made[-1]

    yield make
    for checkpointer in made:
        checkpointer.close()


def run_python(code: str, *arguments, devices: int = 1, check: bool = True):
    environment = dict(
        os.environ,
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES=str(devices),
        PYTHONPATH=str(REPOSITORY),
    )
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        check=check,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_restored_state_has_the_same_bits_and_the_same_structure(make_checkpointer):
    state = make_state()
    checkpointer = make_checkpointer()
    checkpointer.save(7, state, CONFIG)
    restored = checkpointer.restore(abstract(state))
    assert_same_bits(restored, state)
    assert restored["opt_state"][1][0]._fields == ("count", "mu", "nu")
    assert checkpointer.latest_step() == 7


@pytest.mark.parametrize("overwrite", ["donate", "delete", "write in place"])
def test_what_happens_to_the_state_right_after_save_is_not_saved(make_checkpointer, overwrite):
    # Large, so that the writing goes on meanwhile.
    expected = np.random.default_rng(0).normal(size=8_000_000).astype(np.float32)
    if overwrite == "write in place":
        state = {"params": {"kernel": expected.copy()}}
    else:
        state = {"params": {"kernel": jnp.array(expected)}}
    target = abstract({"params": {"kernel": jnp.zeros(expected.shape)}})
    replace = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 - 7, tree), donate_argnums=0)
    jax.block_until_ready(replace(jax.tree.map(jnp.copy, state)))  # compiled beforehand
    checkpointer = make_checkpointer()
    checkpointer.save(1, state, CONFIG)
    if overwrite == "donate":
        jax.block_until_ready(replace(state))
    elif overwrite == "delete":
        state["params"]["kernel"].delete()
    else:
        state["params"]["kernel"][:] = -7
    restored = checkpointer.restore(target)
    np.testing.assert_array_equal(restored["params"]["kernel"], expected)


def test_keeps_the_last_ones_and_every_nth(make_checkpointer, tmp_path):
    checkpointer = make_checkpointer(keep_last=2, keep_every=4)
    state = {"params": {"kernel": jnp.ones(3)}}
    for step in range(1, 8):
        checkpointer.save(step, state, CONFIG)
    checkpointer.wait()
    assert steps_in(tmp_path) == [4, 6, 7]
    checkpointer.close()

    resumed = make_checkpointer(keep_last=2, keep_every=4)
    for step in (8, 9, 10, 11):
        resumed.save(step, state, CONFIG)
    resumed.wait()
    assert steps_in(tmp_path) == [4, 8, 10, 11]


def test_only_the_last_ones_stay_when_keep_every_is_off(make_checkpointer, tmp_path):
    checkpointer = make_checkpointer(keep_last=1)
    for step in (1, 2, 3):
        checkpointer.save(step, {"params": {"kernel": jnp.ones(3)}}, CONFIG)
    checkpointer.wait()
    assert steps_in(tmp_path) == [3]


@pytest.mark.parametrize(
    "options", [{"keep_last": 0, "keep_every": 0}, {"keep_last": 1, "keep_every": -1}]
)
def test_impossible_numbers_to_keep_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"^checkpoint\.keep_"):
        Checkpointer(tmp_path, **options)


KILLED_IN_MID_SAVE = """
    import os, signal, sys
    import jax, jax.numpy as jnp
    from orbax.checkpoint._src.path import atomicity
    from darl_jax.training.checkpoint import Checkpointer

    workdir, where = sys.argv[1:]
    checkpointer = Checkpointer(workdir, keep_last=1, keep_every=0)
    checkpointer.save(1, {"params": {"kernel": jnp.full(1000, 1.0)}}, {})
    checkpointer.wait()

    finalize = atomicity.AtomicRenameTemporaryPath.finalize
    async def killed(self, *args, **kwargs):
        item = "state" if "state" in str(self.get_final()) else self.get_final().name
        if item == where:
            os.kill(os.getpid(), signal.SIGKILL)
        return await finalize(self, *args, **kwargs)
    atomicity.AtomicRenameTemporaryPath.finalize = killed
    checkpointer.save(2, {"params": {"kernel": jnp.full(1000, 2.0)}}, {})
    checkpointer.wait()
    sys.exit("was not killed")
"""


@pytest.mark.parametrize(("where", "next_step"), [("state", 2), ("2", 3)])
def test_kill_in_mid_save_leaves_the_checkpoint_before(
    make_checkpointer, tmp_path, where, next_step
):
    """Killed after the arrays are written, before the item or the step gets its final name."""
    killed = run_python(KILLED_IN_MID_SAVE, tmp_path, where, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [e.name for e in (tmp_path / "checkpoints").iterdir() if e.name.startswith("2")]

    np.testing.assert_array_equal(restore_params(tmp_path)[0]["kernel"], np.full(1000, 1.0))
    checkpointer = make_checkpointer()
    assert checkpointer.latest_step() == 1
    state = {"params": {"kernel": jnp.full(1000, 3.0)}}
    checkpointer.save(next_step, state, CONFIG)
    assert_same_bits(checkpointer.restore(abstract(state)), state)
    assert steps_in(tmp_path) == [1, next_step]


ON_A_MESH = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from darl_jax.training.checkpoint import Checkpointer

    workdir, action, *shape = sys.argv[1:]
    mesh = jax.make_mesh(tuple(map(int, shape)), ("data", "fsdp", "tensor"),
                         axis_types=(AxisType.Auto,) * 3)
    specs = {"kernel": P(("data", "fsdp"), "tensor"), "bias": P(), "half": P("fsdp")}
    values = {
        "kernel": np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32),
        "bias": np.float32([np.nan, -0.0, 1e-45]),
        "half": np.arange(8).astype(jnp.bfloat16) / 3,
    }
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    checkpointer = Checkpointer(workdir, keep_last=1, keep_every=0)
    if action == "write":
        checkpointer.save(1, {"params": jax.device_put(values, shardings)}, {})
    else:
        restored = checkpointer.restore({"params": {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name])
            for name, value in values.items()}})["params"]
        for name, value in values.items():
            assert restored[name].sharding == shardings[name], name
            assert restored[name].dtype == value.dtype, name
            assert np.asarray(restored[name]).tobytes() == value.tobytes(), name
    checkpointer.close()
"""


def test_written_on_one_mesh_and_restored_on_others_bit_for_bit(tmp_path):
    run_python(ON_A_MESH, tmp_path, "write", 8, 1, 1, devices=8)
    run_python(ON_A_MESH, tmp_path, "read", 2, 2, 2, devices=8)
    run_python(ON_A_MESH, tmp_path, "read", 1, 1, 1, devices=1)


def test_arrays_that_do_not_fit_are_listed_in_one_error(make_checkpointer):
    saved = make_state(width=4)
    saved["params"]["gone"] = jnp.ones(3)
    wanted = make_state(width=6)
    wanted["params"]["backbone"]["half"] = jnp.zeros(8, jnp.float32)
    wanted["params"]["new"] = jnp.ones(2)
    checkpointer = make_checkpointer()
    checkpointer.save(1, saved, CONFIG)
    with pytest.raises(ValueError, match="does not fit") as error:
        checkpointer.restore(abstract(wanted))
    lines = [line.strip() for line in str(error.value).splitlines()]
    kernel = "backbone/blocks/mlp/up/kernel"
    assert lines[0].endswith("arrays that differ: 6")
    assert lines[1:] == [
        f"opt_state/1/0/mu/{kernel}: float32 (2, 4, 4) in the checkpoint,"
        " float32 (2, 4, 6) in this run",
        f"opt_state/1/0/nu/{kernel}: float32 (2, 4, 4) in the checkpoint,"
        " float32 (2, 4, 6) in this run",
        "params/backbone/blocks/mlp/up/kernel: float32 (2, 4, 4) in the checkpoint,"
        " float32 (2, 4, 6) in this run",
        "params/backbone/half: bfloat16 (8,) in the checkpoint, float32 (8,) in this run",
        "params/gone: float32 (3,) in the checkpoint, absent in this run",
        "params/new: absent in the checkpoint, float32 (2,) in this run",
    ]


def test_long_lists_of_arrays_that_do_not_fit_are_shortened(make_checkpointer):
    checkpointer = make_checkpointer()
    checkpointer.save(1, {f"a{i:02}": jnp.ones(1) for i in range(15)}, CONFIG)
    with pytest.raises(ValueError, match="differ: 15") as error:
        checkpointer.restore(abstract({f"a{i:02}": jnp.ones(2) for i in range(15)}))
    assert "a09" in str(error.value)
    assert "a10" not in str(error.value)
    assert str(error.value).endswith("and 5 more")


def test_a_leaf_without_a_sharding_is_refused(make_checkpointer):
    checkpointer = make_checkpointer()
    checkpointer.save(1, {"params": {"kernel": jnp.ones(3)}}, CONFIG)
    with pytest.raises(ValueError, match="no sharding"):
        checkpointer.restore({"params": {"kernel": jax.ShapeDtypeStruct((3,), jnp.float32)}})


def test_another_format_version_is_refused(make_checkpointer, tmp_path, monkeypatch):
    state = make_state()
    checkpointer = make_checkpointer()
    monkeypatch.setattr(checkpoint_reading, "FORMAT_VERSION", 4)
    checkpointer.save(1, state, CONFIG)
    checkpointer.wait()
    monkeypatch.undo()
    for read in (
        lambda: checkpointer.restore(abstract(state)),
        lambda: restore_params(tmp_path),
    ):
        with pytest.raises(ValueError, match=r"checkpoints/1 has format version 4; .* version 3"):
            read()


@pytest.mark.parametrize("below", ["", "checkpoints"])
def test_params_are_read_without_the_optimizer_state(make_checkpointer, tmp_path, below):
    state = make_state()
    checkpointer = make_checkpointer()
    checkpointer.save(3, state, CONFIG)
    checkpointer.save(5, state | {"params": jax.tree.map(jnp.zeros_like, state["params"])}, CONFIG)
    checkpointer.wait()
    params, config, step = restore_params(tmp_path / below, 3)
    assert_same_bits(params, jax.tree.map(np.asarray, state["params"]))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    assert config == json.loads(json.dumps(CONFIG))
    assert step == 3
    assert restore_params(tmp_path)[2] == 5


def test_params_are_read_where_no_code_of_this_project_is(make_checkpointer, tmp_path):
    state = make_state()
    checkpointer = make_checkpointer()
    checkpointer.save(1, state, CONFIG)
    checkpointer.wait()
    read = """
        import sys
        import numpy as np, orbax.checkpoint as ocp
        state = ocp.StandardCheckpointer().restore(sys.argv[1] + "/checkpoints/1/state")
        kernel = np.asarray(state["params"]["backbone"]["blocks"]["mlp"]["up"]["kernel"])
        assert not any(name.startswith("darl_jax") for name in sys.modules)
        print(kernel.astype(np.float32).tobytes().hex())
    """
    kernel = state["params"]["backbone"]["blocks"]["mlp"]["up"]["kernel"]
    assert run_python(read, tmp_path).stdout.strip() == np.asarray(kernel).tobytes().hex()


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs Linux's count of bytes read")
def test_of_the_optimizer_state_no_bytes_are_read_for_the_params(make_checkpointer, tmp_path):
    checkpointer = make_checkpointer()
    kernel = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    moments = np.random.default_rng(1).normal(size=2_000_000).astype(np.float32)
    checkpointer.save(1, {"params": {"kernel": kernel}, "opt_state": {"mu": moments}}, CONFIG)
    checkpointer.wait()

    def bytes_read() -> int:
        counts = pathlib.Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in counts if line.startswith("rchar")).split()[1])

    def needed(read) -> int:
        read()  # what it imports
        before = bytes_read()
        read()
        return bytes_read() - before

    target = abstract({"params": {"kernel": kernel}, "opt_state": {"mu": moments}})
    assert needed(lambda: checkpointer.restore(target)) > moments.nbytes / 2
    assert kernel.nbytes / 2 < needed(lambda: restore_params(tmp_path)) < moments.nbytes / 4


def test_missing_checkpoints_are_reported_with_what_there_is(make_checkpointer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/nowhere"):
        restore_params(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*holds: notes.txt"):
        restore_params(tmp_path)
    checkpointer = make_checkpointer()
    assert checkpointer.latest_step() is None
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*holds: nothing"):
        checkpointer.restore(abstract(make_state()))
    for step in (2, 4):
        checkpointer.save(step, make_state(), CONFIG)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*there are: 2, 4"):
        checkpointer.restore(abstract(make_state()), 3)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*there are: 2, 4"):
        restore_params(tmp_path, 3)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "12").mkdir()
    with pytest.raises(ValueError, match=r"/12 is damaged: it has no 'metadata'"):
        restore_params(tmp_path)


@pytest.mark.parametrize("damage", ["emptied", "cut", "garbled", "gone"])
@pytest.mark.parametrize(
    ("file", "concerns"),
    [
        ("metadata/metadata", {"restore", "restore_params"}),
        ("config/metadata", {"restore", "restore_params"}),
        ("state/_METADATA", {"restore", "restore_params"}),
        ("state/manifest.ocdbt", {"restore", "restore_params"}),
        ("state/ocdbt.process_0/d/*", {"restore", "restore_params"}),  # the arrays themselves
    ],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    make_checkpointer, tmp_path, file, concerns, damage
):
    # Larger than what Orbax stores inline.
    state = {"params": {"kernel": jax.random.normal(jax.random.key(0), (20_000,))}}
    checkpointer = make_checkpointer()
    for step in (1, 2):
        checkpointer.save(step, state, CONFIG)
    checkpointer.wait()
    folder = tmp_path / "checkpoints" / "2"
    damaged = max(folder.glob(file), key=os.path.getsize)
    content = damaged.read_bytes()
    if damage == "gone":
        damaged.unlink()
    else:
        changed = {"emptied": b"", "cut": content[: len(content) // 2], "garbled": b"\xff" * 99}
        damaged.write_bytes(changed[damage])
    reads = {
        "restore": lambda: checkpointer.restore(abstract(state)),
        "restore_params": lambda: restore_params(tmp_path),
    }
    if damaged.name == "_METADATA" and damage == "gone":
        # Needed only to find out which arrays there are.
        concerns = concerns - {"restore"}
        assert_same_bits(checkpointer.restore(abstract(state)), state)
    for name in concerns:
        with pytest.raises(DamagedCheckpointError) as error:
            reads[name]()
        message = str(error.value)
        assert message.startswith(f"the checkpoint {folder} is damaged: "), name
        assert message.endswith("; the ones before it may be whole")
        assert "\n" not in message
        assert "array index" not in message  # what TensorStore says of it, not Orbax

    assert_same_bits(checkpointer.restore(abstract(state), 1), state)


@pytest.mark.parametrize(
    "refusal", [ValueError("PERMISSION_DENIED: Error opening"), PermissionError("not yours")]
)
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    make_checkpointer, tmp_path, monkeypatch, refusal
):
    """Nobody is to remove a whole checkpoint."""

    def refuse(*args, **kwargs):
        raise refusal

    checkpointer = make_checkpointer()
    checkpointer.save(1, {"params": {"kernel": jnp.ones(3)}}, CONFIG)
    checkpointer.wait()
    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", refuse)
    with pytest.raises(type(refusal)) as error:
        restore_params(tmp_path)
    assert error.value is refusal


def test_a_file_where_checkpoints_go_is_refused(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ValueError, match=r"/checkpoints is a file"):
        Checkpointer(tmp_path, keep_last=1, keep_every=0)


def test_saving_the_newest_step_again_does_nothing_and_an_older_one_is_refused(
    make_checkpointer, tmp_path
):
    state = {"params": {"kernel": jnp.ones(3)}}
    checkpointer = make_checkpointer()
    checkpointer.save(5, state, CONFIG)
    checkpointer.save(5, {"params": {"kernel": jnp.zeros(3)}}, CONFIG)
    assert_same_bits(checkpointer.restore(abstract(state)), state)
    with pytest.raises(ValueError, match=r"cannot save step 4: .* later checkpoint, of step 5"):
        checkpointer.save(4, state, CONFIG)
    assert steps_in(tmp_path) == [5]


def test_failed_background_write_is_one_error_and_costs_nothing_else(make_checkpointer, tmp_path):
    """A limit on the size of files makes writes fail as a full disk does."""
    state = {"params": {"kernel": jax.random.normal(jax.random.key(0), (200_000,))}}
    checkpointer = make_checkpointer(keep_last=2)
    for step in (1, 2):
        checkpointer.save(step, state, CONFIG)
    checkpointer.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        checkpointer.save(3, state, CONFIG)
        with pytest.raises(OSError, match=r"checkpoint of step 3 to .*/checkpoints, .*too large"):
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpointer.latest_step() == 2
    assert_same_bits(checkpointer.restore(abstract(state), 1), state)

    checkpointer.save(4, state, CONFIG)
    assert_same_bits(checkpointer.restore(abstract(state), 4), state)
    names = {entry.name for entry in (tmp_path / "checkpoints").iterdir()}
    assert {name for name in names if name.isdigit()} == {"2", "4"}


def test_failed_background_write_surfaces_at_the_next_save(make_checkpointer):
    state = {"params": {"kernel": jax.random.normal(jax.random.key(0), (200_000,))}}
    checkpointer = make_checkpointer()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        checkpointer.save(1, state, CONFIG)
        with pytest.raises(OSError, match="checkpoint of step 1 "):
            checkpointer.save(2, state, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_can_no_longer_be_written_is_reported_at_save(make_checkpointer, tmp_path):
    state = {"params": {"kernel": jnp.ones(3)}}
    checkpointer = make_checkpointer()
    checkpointer.save(1, state, CONFIG)
    checkpointer.wait()
    folder = tmp_path / "checkpoints"
    folder.rename(tmp_path / "elsewhere")
    folder.touch()  # a file in its place: not even root can write below it
    with pytest.raises(
        OSError, match=r"could not write the checkpoint of step 2 to .*/checkpoints"
    ):
        checkpointer.save(2, state, CONFIG)
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    checkpointer.save(2, state, CONFIG)
    assert checkpointer.latest_step() == 2


def test_a_workdir_that_cannot_be_written_is_reported_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot keep checkpoints in .*/file/run/checkpoints"):
        Checkpointer(tmp_path / "file" / "run", keep_last=1, keep_every=0)


def test_config_survives_json_and_does_not_differ_from_itself(make_checkpointer, tmp_path):
    checkpointer = make_checkpointer()
    checkpointer.save(1, {"params": {"kernel": jnp.ones(3)}}, CONFIG)
    checkpointer.wait()
    _, saved, _ = restore_params(tmp_path)
    assert saved == {"batch_size": 8, "model": {"width": 4, "shape": [1, 2]}, "nothing": None}
    assert config_differences(saved, CONFIG, []) == []


def test_config_that_json_cannot_hold_is_refused_at_save(make_checkpointer):
    with pytest.raises(ValueError, match=r"cannot be kept as JSON: .*PosixPath"):
        make_checkpointer().save(1, {"a": jnp.ones(1)}, {"where": pathlib.Path("x")})


def test_config_differences_name_the_keys_and_both_values():
    saved = {"model": {"width": 384, "depth": 12, "old": 1}, "data": {"dir": "a", "name": "x"}}
    current = {"model": {"width": 768, "depth": 12, "new": None}, "data": {"dir": "b", "name": "y"}}
    assert config_differences(saved, current, ["data.dir"]) == [
        "data.dataset: 'x' in the checkpoint, 'y' now",
        "model.new: absent in the checkpoint, None now",
        "model.old: 1 in the checkpoint, absent now",
        "model.width: 384 in the checkpoint, 768 now",
    ]
    assert config_differences(saved, current, ["data", "model"]) == []
    # A name that only begins like an entry is not below it.
    assert len(config_differences({"database": 1}, {"database": 2}, ["data"])) == 1


def test_nothing_is_logged_or_warned_in_normal_use(make_checkpointer, caplog):
    caplog.set_level(logging.DEBUG)
    state = make_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpointer = make_checkpointer(keep_last=1)
        for step in (1, 2):
            checkpointer.save(step, state, CONFIG)
        checkpointer.restore(abstract(state))
        checkpointer.wait()
    logging.getLogger("absl").info("our own notes are shown")
    assert [record.getMessage() for record in caplog.records if record.name == "absl"] == [
        "our own notes are shown"
    ]


def test_paths_may_be_of_etils(tmp_path, make_checkpointer):
    checkpointer = make_checkpointer(epath.Path(tmp_path) / "run")
    checkpointer.save(1, {"params": {"kernel": jnp.ones(3)}}, CONFIG)
    checkpointer.wait()
    assert restore_params(epath.Path(tmp_path) / "run")[2] == 1


def test_bucket_path_stays_as_it_is():
    assert str(checkpoint_reading.absolute_path("gs://bucket/run")) == "gs://bucket/run"


def test_path_may_be_relative_to_the_working_directory(make_checkpointer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = make_state()
    checkpointer = make_checkpointer("run")
    checkpointer.save(1, state, CONFIG)
    checkpointer.wait()
    assert checkpointer.latest_step() == 1
    params, _, step = restore_params("run")
    assert step == 1
    np.testing.assert_array_equal(params["odd"], state["params"]["odd"])
