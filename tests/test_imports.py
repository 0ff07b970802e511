"""Directions of imports: the contracts are in pyproject.toml under tool.importlinter."""

import pathlib

from click.testing import CliRunner
from importlinter.cli import lint_imports_command

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_imports_go_one_way(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(lint_imports_command, ["--no-cache"])
    assert result.exit_code == 0, result.output
