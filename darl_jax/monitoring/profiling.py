"""A profiler's trace of some steps, and how much memory the devices and the program take."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import jax
import psutil
from absl import logging
from etils import epath

_GIB = 2**30


class ProfileWindow:
    """Traces steps `first_step` to `first_step + num_steps - 1`, into `<workdir>/profile`.

    The device is waited for at both ends (`wait`, which must not call collectives, for one process
    traces alone), so that these steps are in the trace and no others. A run that goes on from a
    later step traces nothing, and one that ends before the last of them has a shorter trace. With
    `first_step` 0 there is none.
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        first_step: int,
        num_steps: int,
        wait: Callable[[], object],
    ) -> None:
        self._folder = epath.Path(workdir) / "profile"
        self._first_step = first_step
        self._num_steps = num_steps
        self._wait = wait
        # The profiler writes to local disks only.
        self._in_bucket = "://" in str(self._folder)
        self._local: pathlib.Path | None = None  # where the trace goes while it is taken
        self._last_step = 0  # in the trace

    def before_step(self, step: int) -> None:
        """Begins or ends the trace where it is time to; call it before each step."""
        if step == self._first_step:
            self._wait()
            self._local = pathlib.Path(tempfile.mkdtemp() if self._in_bucket else self._folder)
            self._local.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._local)
        elif step == self._first_step + self._num_steps:
            self.close()
        self._last_step = step

    def close(self) -> None:
        """Ends a trace that is still being taken."""
        if self._local is None:
            return
        self._wait()
        jax.profiler.stop_trace()
        if self._in_bucket:
            for file in self._local.rglob("*"):
                if file.is_file():
                    target = self._folder / file.relative_to(self._local).as_posix()
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
            shutil.rmtree(self._local)
        self._local = None
        logging.info(
            "Profiled steps %d to %d into %s. To look at them: pip install xprof; "
            "xprof --logdir=%s; or open its .trace.json.gz at https://ui.perfetto.dev",
            *(self._first_step, self._last_step, self._folder, self._folder),
        )


def device_memory() -> dict[str, float]:
    """GiB that were ever in use on one of this process's devices, and its capacity, where known."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    values = {}
    for key, name in (("peak_bytes_in_use", "peak"), ("bytes_limit", "limit")):
        found = [numbers[key] for numbers in statistics if key in numbers]
        if found:
            values[f"memory/device_{name}_gib"] = max(found) / _GIB
    return values


def host_memory() -> dict[str, float]:
    """GiB that this process holds, without data workers, and that are left on the machine."""
    return {
        "memory/host_gib": psutil.Process().memory_info().rss / _GIB,
        "memory/host_available_gib": psutil.virtual_memory().available / _GIB,
    }
