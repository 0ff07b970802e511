"""A file system that fills up, fails or hangs during a save: one error, and nothing is lost."""

import contextlib
import errno
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils.epath import gpath

from darl_jax.training.checkpoint import Checkpointer, SaveTimeoutError

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
STATE = {f"k{i}": np.random.default_rng(i).normal(size=50_000).astype(np.float32) for i in range(8)}


def save_and_wait(checkpointer: Checkpointer, step: int, state: dict) -> None:
    checkpointer.save(step, state, {})
    checkpointer.wait()


FILLS_UP = """
    import resource, sys, time
    import jax, numpy as np
    from darl_jax.training.checkpoint import Checkpointer

    state = jax.device_put({f"k{i}": np.random.default_rng(i).normal(size=50_000).astype("f")
                            for i in range(8)})
    checkpointer = Checkpointer(sys.argv[1], keep_last=1, keep_every=0)
    checkpointer.save(1, state, {})
    checkpointer.wait()
    # A limit on the size of files makes some writes fail, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
    checkpointer.save(2, state, {})
    try:
        checkpointer.wait()
    except OSError as error:
        print(error)
    checkpointer.close()
"""


def test_a_full_disk_is_one_line_and_the_next_start_finds_the_checkpoint_before(tmp_path):
    code = textwrap.dedent(FILLS_UP)
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(REPOSITORY)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0
    assert run.stderr == ""
    (line,) = run.stdout.splitlines()
    assert line.startswith(f"could not write the checkpoint of step 2 to {tmp_path}/checkpoints, ")
    assert "File too large" in line

    target = jax.tree.map(jnp.zeros_like, STATE)
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)
    restored, step = checkpointer.restore_latest(target)
    assert step == 1
    assert all(np.array_equal(restored[name], STATE[name]) for name in STATE)
    checkpointer.save(2, restored, {})
    checkpointer.close()
    assert os.listdir(tmp_path / "checkpoints") == ["2"]
    assert not (tmp_path / "damaged_checkpoints").exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.ESTALE, errno.EDQUOT])
@pytest.mark.parametrize("file", ["config", "metadata", "_METADATA", "commit_success.txt"])
def test_whatever_the_system_says_is_an_error_that_costs_no_checkpoint(
    tmp_path, monkeypatch, code, file
):
    state = {"kernel": jnp.arange(10.0)}
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)
    checkpointer.save(1, state, {})
    checkpointer.wait()
    write = gpath.PosixGPath.write_text

    def fail(self, *args, **kwargs):
        if file in self.parts[-1] or file in self.parts[-2]:
            raise OSError(code, os.strerror(code), str(self))
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(gpath.PosixGPath, "write_text", fail)
        with pytest.raises(OSError, match="could not write the checkpoint of step 2") as error:
            save_and_wait(checkpointer, 2, state)
    assert os.strerror(code) in str(error.value)
    with contextlib.suppress(OSError):  # What the save had going on may fail again.
        checkpointer.close()
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)  # of the run's next start
    restored, step = checkpointer.restore_latest(state)
    # Where all arrays were written before the error came, Orbax may have completed it all the same.
    assert step in (1, 2)
    np.testing.assert_array_equal(restored["kernel"], state["kernel"])
    checkpointer.close()


@pytest.mark.parametrize("hangs_in", ["the background", "the call"])
def test_a_save_that_hangs_is_an_error_after_the_time_out(tmp_path, monkeypatch, hangs_in):
    state = {"kernel": jnp.arange(10.0)}
    release = threading.Event()
    write, save = gpath.PosixGPath.write_text, ocp.CheckpointManager.save

    def slow_write(self, *args, **kwargs):
        release.wait(60)
        return write(self, *args, **kwargs)

    def slow_save(self, *args, **kwargs):
        release.wait(60)
        return save(self, *args, **kwargs)

    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0, timeout_seconds=30)
    checkpointer.save(1, state, {})
    checkpointer.close()
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0, timeout_seconds=0.5)
    if hangs_in == "the call":
        monkeypatch.setattr(ocp.CheckpointManager, "save", slow_save)
    else:
        monkeypatch.setattr(gpath.PosixGPath, "write_text", slow_write)
    began = time.monotonic()
    message = (
        rf"^writing the checkpoint of step 2 to {tmp_path}/checkpoints takes longer than "
        r"checkpoint.timeout_seconds=0.5; earlier ones are untouched$"
    )
    with pytest.raises(SaveTimeoutError, match=message):
        save_and_wait(checkpointer, 2, state)
    assert time.monotonic() - began < 5
    with pytest.raises(SaveTimeoutError, match="step 2"):
        checkpointer.save(3, state, {})
    checkpointer.close()  # does not hang either
    assert time.monotonic() - began < 5
    assert (tmp_path / "checkpoints" / "1").is_dir()

    # What hung may pass: the checkpoint is whole then.
    release.set()
    while not (tmp_path / "checkpoints" / "2").is_dir():
        assert time.monotonic() - began < 60
        time.sleep(0.05)


def test_a_time_out_must_be_above_zero(tmp_path):
    with pytest.raises(ValueError, match=r"^checkpoint\.timeout_seconds must be above 0, not 0$"):
        Checkpointer(tmp_path, keep_last=1, keep_every=0, timeout_seconds=0)


def test_a_save_that_ended_in_time_is_no_error_however_late_it_is_asked_for(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0, timeout_seconds=2)
    checkpointer.save(1, {"kernel": jnp.arange(10.0)}, {})
    time.sleep(2.5)
    checkpointer.close()
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
