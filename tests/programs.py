"""Programs, in this process as a shell would start them (a start of JAX takes seconds) or apart."""

import contextlib
import importlib
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import psutil
import pytest
from absl import app, flags  # noqa: F401 (app defines flags, which must outlive a call)

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def imported(program: str) -> ModuleType:
    """A program's module, for tests of its functions; its flags may be another program's too."""
    with _own_flags():
        return importlib.import_module(f"darl_jax.{program}")


def call(program: str, *arguments: object) -> int:
    """Runs `python -m darl_jax.PROGRAM ARGUMENTS`; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), _own_flags():
        # It is imported already, by a test of its functions.
        warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        # JAX looks for other processes before its first computation only, and tests have computed.
        patch.setenv("JAX_NUM_PROCESSES", "1")
        try:
            runpy.run_module(f"darl_jax.{program}", run_name="__main__", alter_sys=False)
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    return 0


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """Hides the flags of other programs, and removes new ones at the end."""
    defined = {name: flags.FLAGS.find_module_defining_flag(name) for name in flags.FLAGS}
    # Flags of programs that tests have imported; those that come back here belong to no module.
    hidden = {
        name: flags.FLAGS[name]
        for name, module in defined.items()
        if module is None or module.startswith("darl_jax")
    }
    for name in hidden:
        delattr(flags.FLAGS, name)
    try:
        yield
    finally:
        for name in {*flags.FLAGS} - (defined.keys() - hidden.keys()):
            delattr(flags.FLAGS, name)
        for name, flag in hidden.items():
            flags.FLAGS[name] = flag


def refusal(capsys: pytest.CaptureFixture, program: str, *arguments: object) -> str:
    """The one line that a program leaves with, of bad input."""
    capsys.readouterr()
    assert call(program, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("I")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Starts Python with these arguments, in the repository, with pipes for its output."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """The whole output of a process that is to end with this code."""
    try:
        output, errors = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == code, output[-2000:] + errors[-4000:]
    return output, errors


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie whose parent has not waited for it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def free_address() -> str:
    """An address for process 0."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"
