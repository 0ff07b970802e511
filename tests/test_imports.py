"""Directions of imports: the contracts are in pyproject.toml under tool.importlinter."""

import pytest

from tests.programs import finish, start


@pytest.mark.process
def test_imports_go_one_way() -> None:
    # In a process of its own, which takes a second: import-linter closes the handlers of absl.
    finish(start("-c", "from importlinter.cli import lint_imports as f; exit(f(no_cache=True))"))
