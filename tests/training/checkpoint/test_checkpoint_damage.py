"""A damaged checkpoint is noticed, moved aside for an earlier whole one, and never taken for one.

Checkpoints that are whole and belong to another run are not moved.
"""

import os
import pathlib
import random

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from darl_jax.training.checkpoint import (
    Checkpointer,
    DamagedCheckpointError,
    reading,
    restore_params,
)

CONFIG = {"model": {"width": 4, "rates": [0.5, None]}, "name": "x"}


def make_state(seed: int) -> dict:
    key = jax.random.key(seed)
    return {
        "step": jnp.int32(seed),
        "params": {
            "kernel": jax.random.normal(key, (20, 50)),
            "half": jnp.linspace(-1, 1, 64, dtype=jnp.bfloat16),
        },
        "other": {
            "mask": jax.random.normal(key, (3000,)) > 0,
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
    noticed = set()
    for path in files:
        position = generator.randrange(path.stat().st_size)
        mask = generator.randrange(1, 256)
        flip(path, position, mask)
        item = path.relative_to(folder).parts[0]
        try:
            assert bits(checkpointer.restore_latest(state)[0]) == bits(state), (path, position)
        except ValueError:  # of all checkpoints together
            noticed.add(item)
        try:
            params, config, _ = restore_params(tmp_path)
            assert bits(params) == bits(state["params"]), (path, position)
            assert config == CONFIG
        except DamagedCheckpointError:
            noticed.add(f"{item}, params alone")
        flip(path, position, mask)
    assert bits(checkpointer.restore_latest(state)[0]) == bits(state)
    items = ("config", "metadata", "state")
    assert noticed == {*items, *(f"{item}, params alone" for item in items)}


def test_wrong_bits_that_no_file_betrays_are_noticed(checkpointer, monkeypatch):
    """As a flipped byte in array data that is stored uncompressed would give."""
    state = make_state(1)
    checkpointer.save(1, state, CONFIG)
    read = reading.read_arrays

    def read_wrongly(path, target):
        arrays = read(path, target)
        arrays["other"]["counts"] = arrays["other"]["counts"].at[69_999].add(1)
        return arrays

    monkeypatch.setattr(reading, "read_arrays", read_wrongly)
    with pytest.raises(ValueError, match=r"step 1: wrong checksum of other/counts\."):
        checkpointer.restore_latest(state)


def test_newest_whole_checkpoint_is_restored_and_damaged_ones_are_moved_aside(
    checkpointer, tmp_path, caplog
):
    for step in (1, 2, 3, 4):
        checkpointer.save(step, make_state(step), {**CONFIG, "step": step}, "records")
    checkpointer.wait()
    damage(tmp_path, 3, "config/metadata")
    damage(tmp_path, 4, "state/d/*")
    before = files_below(tmp_path / "checkpoints")
    checked = []
    state, step = checkpointer.restore_latest(
        make_state(0), lambda config, records, step: checked.append((config["step"], records, step))
    )
    assert step == 2
    assert bits(state) == bits(make_state(2))
    assert checked == [(4, "records", 4), (2, "records", 2)]  # a damaged config is not checked
    warnings = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert len(warnings) == 2
    for step, message in zip((4, 3), warnings, strict=True):
        assert message.startswith(f"The checkpoint of step {step} cannot be used (")
        assert "\n" not in message
        assert "tensorstore_spec" not in message
        assert message.endswith(f"damaged_checkpoints/{step}; step 2 is used")

    # Nothing is lost, and the steps can be saved again.
    after = files_below(tmp_path / "checkpoints") | files_below(tmp_path / "damaged_checkpoints")
    assert after == before
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
    aside = sorted(os.listdir(tmp_path / "damaged_checkpoints"))
    assert [name.split("-")[0] for name in aside] == ["3", "4", "4"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("missing", "emptied"),
    [("metadata", False), ("state", False), ("state/d", True), ("config/metadata", True)],
)
def test_checkpoint_with_missing_or_empty_files_is_passed_over(
    checkpointer, tmp_path, missing, emptied
):
    for step in (1, 2):
        checkpointer.save(step, make_state(step), CONFIG)
    checkpointer.wait()
    path = tmp_path / "checkpoints" / "2" / missing
    if emptied:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    else:
        path.rename(tmp_path / "lost")
    with pytest.raises(DamagedCheckpointError) as error:
        restore_params(tmp_path)
    assert str(error.value).startswith(f"the checkpoint {path.parents[missing.count('/')]} cannot")
    assert "\n" not in str(error.value)
    state, step = checkpointer.restore_latest(make_state(0))
    assert step == 1
    assert bits(state) == bits(make_state(1))


def test_when_none_is_whole_all_are_named_and_left(checkpointer, tmp_path):
    for step in (1, 2):
        checkpointer.save(step, make_state(step), CONFIG)
    checkpointer.wait()
    damage(tmp_path, 1, "state/d/*")
    damage(tmp_path, 2, "metadata/metadata")
    before = files_below(tmp_path)
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* can be used.*step 2: .*; step 1: .*start anew$"
    ):
        checkpointer.restore_latest(make_state(0))
    assert files_below(tmp_path) == before


def fail_as_a_device_does(*args, **kwargs):
    raise jax.errors.JaxRuntimeError("INTERNAL: a driver's error")


@pytest.mark.parametrize("trouble", ["model", "config", "version", "device"])
def test_whole_checkpoint_of_another_run_is_not_moved(checkpointer, tmp_path, monkeypatch, trouble):
    """Nor are damaged ones that are newer, and no array is read before the check of the config."""
    for step in (1, 2, 3):
        with monkeypatch.context() as patch:
            if trouble == "version" and step == 2:
                patch.setattr(reading, "FORMAT_VERSION", 4)
            checkpointer.save(step, make_state(step), CONFIG)
    checkpointer.wait()
    damage(tmp_path, 3, "config/metadata")
    before = files_below(tmp_path)
    wanted, check = make_state(0), None
    if trouble == "model":
        wanted["params"]["kernel"] = jnp.zeros((20, 51))
    if trouble == "config":
        monkeypatch.delattr(reading, "read_arrays")

        def check(config, records, step):
            raise ValueError(f"step {step} has another config: does not fit")

    if trouble == "device":
        monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail_as_a_device_does)
    kinds = (ValueError, jax.errors.JaxRuntimeError)
    with pytest.raises(kinds, match=r"does not fit|format version 4|^INTERNAL") as error:
        checkpointer.restore_latest(wanted, check)
    assert not isinstance(error.value, DamagedCheckpointError)
    assert files_below(tmp_path) == before
