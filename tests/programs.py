"""Programs, run in this process as a shell would start them: a start of JAX takes seconds."""

import runpy
import sys
import warnings

import pytest
from absl import flags
from absl.testing import flagsaver


def call(program: str, *arguments: object) -> int:
    """Runs `python -m darl_jax.PROGRAM ARGUMENTS`; returns its exit code."""
    saved = flagsaver.save_flag_values()
    for name in flags.FLAGS:
        flags.FLAGS[name].allow_override = True  # programs that are imported here have the same
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # It is imported already, by a test of its functions.
        warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        try:
            runpy.run_module(f"darl_jax.{program}", run_name="__main__", alter_sys=False)
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        finally:
            flagsaver.restore_flag_values(saved)
    return 0


def refusal(capsys: pytest.CaptureFixture, program: str, *arguments: object) -> str:
    """The one line that a program leaves with, of bad input."""
    capsys.readouterr()
    assert call(program, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("I")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
