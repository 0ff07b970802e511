"""A file system that fills up, fails or hangs during a save: one error, and nothing is lost."""

import contextlib
import errno
import os
import resource
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils.epath import gpath

from darl_jax.training.checkpoint import Checkpointer, SaveTimeoutError

STATE = {f"k{i}": np.random.default_rng(i).normal(size=50_000).astype(np.float32) for i in range(8)}


def test_full_disk_is_one_line_and_the_next_start_finds_the_previous_checkpoint(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)
    checkpointer.save(1, jax.device_put(STATE), {})
    checkpointer.wait()
    # A limit on the size of files makes some writes fail, as a full disk does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        checkpointer.save(2, jax.device_put(STATE), {})
        message = f"^could not write the checkpoint of step 2 to {tmp_path}/.*too large"
        with pytest.raises(OSError, match=message) as error:
            checkpointer.save(3, jax.device_put(STATE), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    checkpointer.close()

    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)
    restored, step = checkpointer.restore_latest(jax.tree.map(jnp.zeros_like, STATE))
    assert step == 1
    assert all(np.array_equal(restored[name], STATE[name]) for name in STATE)
    checkpointer.save(2, restored, {})
    checkpointer.close()
    assert os.listdir(tmp_path / "checkpoints") == ["2"]
    assert not (tmp_path / "damaged_checkpoints").exists()


@pytest.mark.parametrize(
    ("code", "file"),
    [(errno.EROFS, "config"), (errno.EIO, "_METADATA")],
)
def test_error_of_the_file_system_costs_no_checkpoint(tmp_path, monkeypatch, code, file):
    state = {"kernel": jnp.arange(10.0)}
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)
    checkpointer.save(1, state, {})
    checkpointer.wait()
    write = gpath.PosixGPath.write_text

    def fail(self, *args, **kwargs):
        if file in self.parts[-1] or file in self.parts[-2]:
            raise OSError(code, os.strerror(code), str(self))
        return write(self, *args, **kwargs)

    def save_and_wait() -> None:
        checkpointer.save(2, state, {})
        checkpointer.wait()

    with monkeypatch.context() as patch:
        patch.setattr(gpath.PosixGPath, "write_text", fail)
        with pytest.raises(OSError, match="could not write the checkpoint of step 2") as error:
            save_and_wait()
    assert os.strerror(code) in str(error.value)
    with contextlib.suppress(OSError):  # Writes that were under way may fail again.
        checkpointer.close()
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)  # of the run's next start
    restored, step = checkpointer.restore_latest(state)
    # Where all arrays were written before the error came, Orbax may have completed it all the same.
    assert step in (1, 2)
    np.testing.assert_array_equal(restored["kernel"], state["kernel"])
    checkpointer.close()


def test_save_that_hangs_is_an_error_after_the_time_limit(tmp_path, monkeypatch):
    state = {"kernel": jnp.arange(10.0)}
    release = threading.Event()
    write = gpath.PosixGPath.write_text

    def slow_write(self, *args, **kwargs):
        release.wait(60)
        return write(self, *args, **kwargs)

    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0, timeout_seconds=1)
    checkpointer.save(1, state, {})
    time.sleep(1.5)  # A save that ended in time is no error, however late it is waited for.
    checkpointer.wait()
    monkeypatch.setattr(gpath.PosixGPath, "write_text", slow_write)
    began = time.monotonic()
    message = (
        rf"^writing the checkpoint of step 2 to {tmp_path}/checkpoints takes longer than "
        r"checkpoint.timeout_seconds=1; earlier ones are untouched$"
    )
    checkpointer.save(2, state, {})
    assert time.monotonic() - began < 1
    with pytest.raises(SaveTimeoutError, match=message):
        checkpointer.wait()
    checkpointer.close()  # does not hang either
    assert time.monotonic() - began < 10
    assert (tmp_path / "checkpoints" / "1").is_dir()
    assert not (tmp_path / "checkpoints" / "2").exists()
    release.set()
