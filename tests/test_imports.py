"""Directions of imports: the contracts are in pyproject.toml under tool.importlinter."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.process
def test_imports_go_one_way() -> None:
    # In a process of its own, which takes a second: import-linter closes the handlers of absl.
    program = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
