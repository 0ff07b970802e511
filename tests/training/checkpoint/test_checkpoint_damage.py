"""A damaged checkpoint is noticed, moved aside for a whole one before it, and never taken for one.

What is no damage (another model, another config, no permission) moves nothing.
"""

import collections
import os
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.training.checkpoint import Checkpointer, DamagedCheckpointError, restore_params
from darl_jax.training.checkpoint import reading as checkpoint_reading

CONFIG = {"model": {"width": 4, "rates": [0.5, None]}, "name": "x"}


def make_state(seed: int) -> dict:
    key = jax.random.key(seed)
    return {
        "step": jnp.int32(seed),
        "params": {
            "kernel": jax.random.normal(key, (20, 50)),
            "zeros": jnp.zeros(40),
            "half": jnp.linspace(-1, 1, 64, dtype=jnp.bfloat16),
        },
        "other": {
            "mask": jax.random.normal(key, (3000,)) > 0,
            "key": jax.random.key_data(key),
            # Compresses well: a byte of the file is many of the array.
            "counts": jnp.arange(70_000) % 7,
        },
    }


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def flip(path: pathlib.Path, position: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def damage(workdir: pathlib.Path, step: int, file: str) -> None:
    folder = workdir / "checkpoints" / str(step)
    path = max(folder.glob(file), key=os.path.getsize)
    flip(path, path.stat().st_size // 2, 4)


def files_below(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def checkpointer(tmp_path):
    made = Checkpointer(tmp_path, keep_last=9, keep_every=0)
    yield made
    made.close()


def test_every_flipped_byte_is_noticed_or_changes_nothing(checkpointer, tmp_path):
    state = make_state(1)
    checkpointer.save(1, state, CONFIG)
    checkpointer.wait()
    folder = tmp_path / "checkpoints" / "1"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    generator = random.Random(0)
    noticed: collections.Counter = collections.Counter()
    for attempt in range(6 * len(files)):
        path = files[attempt % len(files)]
        position = generator.randrange(path.stat().st_size)
        mask = generator.randrange(1, 256)
        flip(path, position, mask)
        item = path.relative_to(folder).parts[0]
        try:
            assert bits(checkpointer.restore(state)) == bits(state), (path, position, mask)
        except DamagedCheckpointError:
            noticed[item] += 1
        try:
            params, config, _ = restore_params(tmp_path)
            assert bits(params) == bits(state["params"]), (path, position, mask)
            assert config == CONFIG
        except DamagedCheckpointError:
            noticed[f"{item}, params alone"] += 1
        flip(path, position, mask)
    assert bits(checkpointer.restore(state)) == bits(state)
    for item in ("config", "metadata", "state"):
        assert noticed[item] >= 6
        assert noticed[f"{item}, params alone"] >= 6


def test_wrong_bits_that_no_file_betrays_are_noticed(checkpointer, tmp_path, monkeypatch):
    """As a flipped byte in array data that is stored uncompressed would give."""
    state = make_state(1)
    checkpointer.save(1, state, CONFIG)
    read = checkpoint_reading.read_arrays

    def read_wrongly(path, target):
        arrays = read(path, target)
        arrays["other"]["counts"] = arrays["other"]["counts"].at[69_999].add(1)
        return arrays

    monkeypatch.setattr(checkpoint_reading, "read_arrays", read_wrongly)
    with pytest.raises(DamagedCheckpointError, match=r"wrong checksum of other/counts;"):
        checkpointer.restore(state)


def test_the_newest_whole_checkpoint_is_restored_and_damaged_ones_are_moved_aside(
    checkpointer, tmp_path, caplog
):
    for step in (1, 2, 3, 4):
        checkpointer.save(step, make_state(step), {**CONFIG, "step": step})
    checkpointer.wait()
    damage(tmp_path, 3, "config/metadata")
    damage(tmp_path, 4, "state/d/*")
    before = files_below(tmp_path / "checkpoints")
    checked = []
    state, step = checkpointer.restore_latest(
        make_state(0), lambda config, step: checked.append((config["step"], step))
    )
    assert step == 2
    assert bits(state) == bits(make_state(2))
    assert checked == [(4, 4), (2, 2)]  # what is not whole is not shown
    warnings = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert len(warnings) == 2
    for step, message in zip((4, 3), warnings, strict=True):
        assert message.startswith(f"The checkpoint of step {step} is damaged (")
        assert "\n" not in message
        assert "tensorstore_spec" not in message
        assert message.endswith(f"damaged_checkpoints/{step}; step 2 is used instead")

    # Nothing is lost, and the steps can be saved again.
    after = files_below(tmp_path / "checkpoints") | files_below(tmp_path / "damaged_checkpoints")
    assert after == before
    assert checkpointer.latest_step() == 2
    for step in (3, 4):
        checkpointer.save(step, make_state(step), CONFIG)
    assert bits(checkpointer.restore_latest(make_state(0))) == bits((make_state(4), 4))

    # The same step once more, by a run that starts then.
    damage(tmp_path, 4, "metadata/metadata")
    checkpointer.close()
    again = Checkpointer(tmp_path, keep_last=9, keep_every=0)
    assert again.restore_latest(make_state(0))[1] == 3
    again.save(4, make_state(4), CONFIG)
    again.close()
    assert sorted(os.listdir(tmp_path / "damaged_checkpoints")) == ["3", "4", "4-2"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("missing", ["metadata", "config", "state", "state/d", "config/metadata"])
def test_a_checkpoint_with_missing_files_is_damaged(checkpointer, tmp_path, missing):
    for step in (1, 2):
        checkpointer.save(step, make_state(step), CONFIG)
    checkpointer.wait()
    path = tmp_path / "checkpoints" / "2" / missing
    path.rename(tmp_path / "lost")
    state, step = checkpointer.restore_latest(make_state(0))
    assert step == 1
    assert bits(state) == bits(make_state(1))


def test_when_all_are_damaged_all_are_named_and_left(checkpointer, tmp_path):
    assert checkpointer.restore_latest(make_state(0)) is None
    for step in (1, 2):
        checkpointer.save(step, make_state(step), CONFIG)
    checkpointer.wait()
    damage(tmp_path, 1, "state/d/*")
    damage(tmp_path, 2, "metadata/metadata")
    before = files_below(tmp_path)
    with pytest.raises(
        ValueError, match=r"every checkpoint in .* is damaged.*step 2: .*; step 1: .*start anew$"
    ):
        checkpointer.restore_latest(make_state(0))
    assert files_below(tmp_path) == before


def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


def refuse_as_tensorstore_does(*args, **kwargs):
    raise ValueError("UNAVAILABLE: Error opening")


def fail_as_a_device_does(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("INTERNAL: a driver's error")


def fail_as_a_device_does_in_orbax(*args, **kwargs):
    try:
        fail_as_a_device_does()
    except jax.errors.JaxRuntimeError as error:
        raise Exception("Encountered error while reading array index: 0") from error


@pytest.mark.parametrize(
    "trouble",
    [
        "model",
        "config",
        "version",
        refuse,
        refuse_as_tensorstore_does,
        fail_as_a_device_does,
        fail_as_a_device_does_in_orbax,
    ],
)
def test_what_is_no_damage_moves_nothing(checkpointer, tmp_path, monkeypatch, trouble):
    """Not even damaged ones that are newer."""
    for step in (1, 2, 3):
        with monkeypatch.context() as patch:
            if trouble == "version" and step == 2:
                patch.setattr(checkpoint_reading, "FORMAT_VERSION", 4)
            checkpointer.save(step, make_state(step), CONFIG)
    checkpointer.wait()
    damage(tmp_path, 3, "config/metadata")
    before = files_below(tmp_path)
    wanted, check = make_state(0), None
    if trouble == "model":
        wanted["params"]["kernel"] = jnp.zeros((20, 51))
    elif trouble == "config":

        def check(config, step):
            raise ValueError(f"step {step} has another config: does not fit")

    elif callable(trouble):
        monkeypatch.setattr("orbax.checkpoint.StandardCheckpointHandler.restore", trouble)
    message = "does not fit|format version 3|Permission denied|UNAVAILABLE|^INTERNAL"
    kinds = (ValueError, PermissionError, jax.errors.JaxRuntimeError)
    with pytest.raises(kinds, match=message) as error:
        checkpointer.restore_latest(wanted, check)
    assert not isinstance(error.value, DamagedCheckpointError)
    assert files_below(tmp_path) == before


def test_arrays_are_not_read_when_the_check_of_the_config_fails(checkpointer, monkeypatch):
    checkpointer.save(1, make_state(1), CONFIG)

    def never(*args, **kwargs):
        raise AssertionError("arrays were read")

    def check(config, step):
        raise ValueError("another config")

    monkeypatch.setattr(checkpoint_reading, "read_arrays", never)
    with pytest.raises(ValueError, match="another config"):
        checkpointer.restore_latest(make_state(1), check)
