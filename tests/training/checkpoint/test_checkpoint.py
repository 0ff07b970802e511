"""Checkpoints: complete or ignored, bit for bit, on any mesh, with errors that name the fault."""

import json
import logging
import signal
import textwrap
import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

from darl_jax.config.resuming import config_differences
from darl_jax.training.checkpoint import Checkpointer, reading, restore_params, restore_records
from tests.programs import finish, start

CONFIG = {"batch_size": 8, "model": {"width": 4, "shape": (1, 2)}, "nothing": None}
SMALL = {"params": {"kernel": jnp.ones(3)}}


class OutOfOrder(NamedTuple):
    z: jax.Array
    a: jax.Array


def make_state(seed: int = 0, width: int = 4) -> dict:
    """A state with the kinds of a real one: stacked blocks, optax's named tuples, several types."""
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
    sharding = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state
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


def test_restored_state_has_the_same_bits_and_structure_and_nothing_is_logged(
    make_checkpointer, caplog
):
    caplog.set_level(logging.DEBUG)
    state = make_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpointer = make_checkpointer(keep_last=1)
        for step in (6, 7):
            checkpointer.save(step, state, CONFIG)
        restored, step = checkpointer.restore_latest(abstract(state))
        checkpointer.wait()
    assert_same_bits(restored, state)
    assert restored["opt_state"][1][0]._fields == ("count", "mu", "nu")
    assert step == 7
    logging.getLogger("absl").info("our own notes are shown")
    assert [record.getMessage() for record in caplog.records if record.name == "absl"] == [
        "our own notes are shown"
    ]


@pytest.mark.parametrize("overwrite", ["donate", "write in place"])
def test_overwriting_the_state_right_after_save_changes_nothing_saved(make_checkpointer, overwrite):
    # Large, so that the writing goes on meanwhile.
    expected = np.random.default_rng(0).normal(size=8_000_000).astype(np.float32)
    in_place = overwrite == "write in place"
    state = {"params": {"kernel": expected.copy() if in_place else jnp.array(expected)}}
    target = abstract({"params": {"kernel": jnp.zeros(expected.shape)}})
    replace = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 - 7, tree), donate_argnums=0)
    jax.block_until_ready(replace(jax.tree.map(jnp.copy, state)))  # compiled beforehand
    checkpointer = make_checkpointer()
    checkpointer.save(1, state, CONFIG)
    if in_place:
        state["params"]["kernel"][:] = -7
    else:
        jax.block_until_ready(replace(state))
    restored, _ = checkpointer.restore_latest(target)
    np.testing.assert_array_equal(restored["params"]["kernel"], expected)


def test_keeps_the_last_ones_and_every_nth(make_checkpointer, tmp_path):
    checkpointer = make_checkpointer(keep_last=2, keep_every=4)
    for step in range(1, 8):
        checkpointer.save(step, SMALL, CONFIG)
    checkpointer.wait()
    assert steps_in(tmp_path) == [4, 6, 7]

    resumed = make_checkpointer(keep_last=1)
    resumed.save(8, SMALL, CONFIG)
    resumed.wait()
    assert steps_in(tmp_path) == [8]


KILLED_IN_MID_SAVE = """
    import sys
    import jax.numpy as jnp
    from darl_jax.training.checkpoint import Checkpointer

    checkpointer = Checkpointer(sys.argv[1], keep_last=1, keep_every=0)
    checkpointer.save(1, {"params": {"kernel": jnp.full(1000, 1.0)}}, {})
    checkpointer.wait()
    # Many arrays, so that writing takes a while.
    many = {f"k{i}": jnp.full(50_000, float(i)) for i in range(300)}
    checkpointer.save(2, {"params": many}, {})
    checkpointer.wait()
    sys.exit("was not killed")
"""


@pytest.mark.process
def test_kill_in_mid_save_leaves_the_previous_checkpoint(make_checkpointer, tmp_path):
    process = start("-c", textwrap.dedent(KILLED_IN_MID_SAVE), tmp_path)
    folder = tmp_path / "checkpoints"
    while not any(folder.glob("2.*")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    finish(process, -signal.SIGKILL)
    assert not (folder / "2").exists()

    np.testing.assert_array_equal(restore_params(tmp_path)[0]["kernel"], np.full(1000, 1.0))
    checkpointer = make_checkpointer()
    checkpointer.save(2, SMALL, CONFIG)
    assert_same_bits(checkpointer.restore_latest(abstract(SMALL))[0], SMALL)
    assert steps_in(tmp_path) == [1, 2]


ON_MESHES = """
    import sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from darl_jax.training.checkpoint import Checkpointer

    specs = {"kernel": P(("data", "fsdp"), "tensor"), "bias": P(), "half": P("fsdp")}
    values = {
        "kernel": np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32),
        "bias": np.float32([np.nan, -0.0, 1e-45]),
        "half": np.arange(8).astype(jnp.bfloat16) / 3,
    }

    def shardings(*shape):
        mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3,
                             devices=jax.devices()[:np.prod(shape)])
        return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}

    checkpointer = Checkpointer(sys.argv[1], keep_last=1, keep_every=0)
    checkpointer.save(1, {"params": jax.device_put(values, shardings(8, 1, 1))}, {})
    for shape in ((2, 2, 2), (1, 1, 1)):
        wanted = shardings(*shape)
        restored, _ = checkpointer.restore_latest({"params": {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=wanted[name])
            for name, value in values.items()}})
        for name, value in values.items():
            found = restored["params"][name]
            assert found.sharding == wanted[name], name
            assert np.asarray(found).tobytes() == value.tobytes(), name
    checkpointer.close()
"""


@pytest.mark.process
def test_state_restores_onto_other_meshes_bit_for_bit(tmp_path):
    finish(start("-c", textwrap.dedent(ON_MESHES), tmp_path, JAX_NUM_CPU_DEVICES="8"))


def test_arrays_that_do_not_fit_are_listed_in_one_error(make_checkpointer):
    saved = make_state(width=4)
    saved["params"]["gone"] = jnp.ones(3)
    wanted = make_state(width=6)
    wanted["params"]["backbone"]["half"] = jnp.zeros(8, jnp.float32)
    wanted["params"]["new"] = jnp.ones(2)
    checkpointer = make_checkpointer()
    checkpointer.save(1, saved, CONFIG)
    with pytest.raises(ValueError, match="does not fit") as error:
        checkpointer.restore_latest(abstract(wanted))
    lines = [line.strip() for line in str(error.value).splitlines()]
    kernel = "backbone/blocks/mlp/up/kernel"
    changed = "float32 (2, 4, 4) in the checkpoint, float32 (2, 4, 6) in this run"
    assert lines[0].endswith("arrays that differ: 6")
    assert lines[1:] == [
        f"opt_state/1/0/mu/{kernel}: {changed}",
        f"opt_state/1/0/nu/{kernel}: {changed}",
        f"params/{kernel}: {changed}",
        "params/backbone/half: bfloat16 (8,) in the checkpoint, float32 (8,) in this run",
        "params/gone: float32 (3,) in the checkpoint, absent in this run",
        "params/new: absent in the checkpoint, float32 (2,) in this run",
    ]
    assert reading.shortened([str(i) for i in range(15)])[9:] == ["9", "and 5 more"]


def test_another_format_version_is_refused(make_checkpointer, tmp_path, monkeypatch):
    checkpointer = make_checkpointer()
    monkeypatch.setattr(reading, "FORMAT_VERSION", 4)
    checkpointer.save(1, SMALL, CONFIG)
    checkpointer.wait()
    monkeypatch.undo()
    version = f"reads version {reading.FORMAT_VERSION}"
    for read in (lambda: checkpointer.restore_latest(SMALL), lambda: restore_params(tmp_path)):
        with pytest.raises(ValueError, match=rf"checkpoints/1 has format version 4; .* {version}"):
            read()


def test_params_are_read_without_the_optimizer_state(make_checkpointer, tmp_path, monkeypatch):
    state = make_state()
    checkpointer = make_checkpointer()
    checkpointer.save(3, state, CONFIG, "7 records, abc")
    checkpointer.save(5, state | {"params": jax.tree.map(jnp.zeros_like, state["params"])}, CONFIG)
    checkpointer.wait()
    params, config, step = restore_params(tmp_path / "checkpoints", 3)
    assert_same_bits(params, jax.tree.map(np.asarray, state["params"]))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    assert config == json.loads(json.dumps(CONFIG))
    assert step == 3
    assert restore_params(tmp_path)[2] == 5
    assert restore_records(tmp_path, 3) == "7 records, abc"
    monkeypatch.chdir(tmp_path.parent)
    assert restore_params(tmp_path.name)[2] == 5
    # Orbax alone reads the same.
    alone = ocp.StandardCheckpointer().restore(tmp_path / "checkpoints" / "3" / "state")
    np.testing.assert_array_equal(alone["params"]["odd"], params["odd"])


def test_missing_checkpoints_are_reported_with_the_existing_ones(make_checkpointer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/nowhere"):
        restore_params(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*holds: notes.txt"):
        restore_params(tmp_path)
    checkpointer = make_checkpointer()
    assert checkpointer.restore_latest(abstract(SMALL)) is None
    for step in (2, 4):
        checkpointer.save(step, SMALL, CONFIG)
    checkpointer.wait()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3 in .*there are: 2, 4"):
        restore_params(tmp_path, 3)


@pytest.mark.parametrize("name", ["lr[1e-4]", "a*", "what?"])
def test_paths_below_which_arrays_would_be_lost_are_refused(tmp_path, name):
    """Orbax takes them for patterns."""
    with pytest.raises(ValueError, match=r"^no checkpoint can be written below .*/run: Orbax"):
        Checkpointer(tmp_path / name / "run", keep_last=1, keep_every=0)
    assert not list(tmp_path.iterdir())


def test_step_gets_its_name_only_when_each_array_can_be_found(make_checkpointer, tmp_path):
    """The path is let through to Orbax, which loses the arrays there without an error."""
    checkpointer = make_checkpointer()
    checkpointer.save(1, SMALL, CONFIG)
    checkpointer.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "writable_path", reading.absolute_path)
        broken = Checkpointer(tmp_path / "a[1]", keep_last=1, keep_every=0)
    broken.save(1, SMALL, CONFIG)
    with pytest.raises(OSError, match=r"could not write the checkpoint of step 1 .*NOT_FOUND"):
        broken.wait()
    broken.close()
    assert not (tmp_path / "a[1]" / "checkpoints" / "1").exists()


def test_saving_the_newest_step_again_does_nothing_and_an_older_one_is_refused(
    make_checkpointer, tmp_path
):
    checkpointer = make_checkpointer()
    checkpointer.save(5, SMALL, CONFIG)
    checkpointer.save(5, {"params": {"kernel": jnp.zeros(3)}}, CONFIG)
    assert_same_bits(checkpointer.restore_latest(abstract(SMALL))[0], SMALL)
    with pytest.raises(ValueError, match=r"cannot save step 4: .* later checkpoint, of step 5"):
        checkpointer.save(4, SMALL, CONFIG)
    assert steps_in(tmp_path) == [5]


def test_workdir_that_cannot_be_written_is_reported_at_the_start(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot keep checkpoints in .*/file/run/checkpoints"):
        Checkpointer(tmp_path / "file" / "run", keep_last=1, keep_every=0)
    (tmp_path / "checkpoints").touch()
    with pytest.raises(FileExistsError, match=r"/checkpoints is a file"):
        Checkpointer(tmp_path, keep_last=1, keep_every=0)


def test_config_differences_name_the_keys_and_both_values():
    saved = {"model": {"width": 384, "depth": 12, "old": 1}, "data": {"dir": "a", "name": "x"}}
    current = {"model": {"width": 768, "depth": 12, "new": None}, "data": {"dir": "b", "name": "y"}}
    assert config_differences(saved, current, ["data.dir"]) == [
        "data.name: 'x' in the checkpoint, 'y' now",
        "model.new: absent in the checkpoint, None now",
        "model.old: 1 in the checkpoint, absent now",
        "model.width: 384 in the checkpoint, 768 now",
    ]
    assert config_differences(saved, current, ["data", "model"]) == []
    assert config_differences({"a": [1]}, {"a": (1,)}, []) == []
    # A name that only begins like an entry is not below it.
    assert len(config_differences({"database": 1}, {"database": 2}, ["data"])) == 1
