"""The planning program as a user starts it, on a config that compiles in a second."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SIZE = {"width": 32, "mlp_dim": 64, "depth": 2, "unroll": 1}


def run_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """darl_jax.plan for a small model of the digits."""
    command = [sys.executable, "-m", "darl_jax.plan", "--config=configs/digits.py:mse"]
    command += [f"--config.model.{key}={value}" for key, value in SIZE.items()]
    return run([*command, *arguments])


def compiling_as_users_do() -> dict[str, str]:
    """The environment without what `conftest.py` sets to have XLA spend less time."""
    dropped = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    return {key: value for key, value in os.environ.items() if key not in dropped}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command in the repository's root, without an accelerator."""
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=compiling_as_users_do() | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )


@functools.cache
def fsdp_plan() -> dict[str, Any]:
    """Plan for 2 x 2 forced CPU devices, computed once for all tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        done = run_plan(
            "--topology=cpu:4",
            "--config.mesh.data=2",
            "--config.mesh.fsdp=2",
            f"--json={folder / 'plan.json'}",
        )
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "plan.json").read_text())
