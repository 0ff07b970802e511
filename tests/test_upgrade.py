"""The newest releases that setup.py allows, beyond the pins of requirements.txt."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

TINY = (
    f"--config={REPOSITORY}/configs/digits.py:mse",
    "--config.model.width=16",
    "--config.model.mlp_dim=32",
    "--config.model.depth=1",
    "--config.data.num_workers=1",  # Grain's worker process
    "--config.evaluators.probe.every_steps=0",
    "--config.checkpoint.every_steps=2",
)


@pytest.mark.upgrade
@pytest.mark.timeout(1800)
def test_a_run_trains_resumes_and_is_evaluated_on_the_newest_releases(tmp_path, capfd) -> None:
    """What it would break shows here first; what was installed stands in the test's output."""
    python = tmp_path / "venv" / "bin" / "python"
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}

    def run(*command: object) -> None:
        subprocess.run(
            [*map(str, command)],
            check=True,
            cwd=tmp_path,
            env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)},
        )

    run(sys.executable, "-m", "venv", python.parents[1])
    run(python, "-m", "pip", "install", "-q", "--upgrade", REPOSITORY)
    run(python, "-m", "pip", "list")
    workdir = pathlib.Path(tmp_path, "run")
    for steps in (3, 6):
        run(
            *(python, "-m", "darl_jax.train", *TINY, f"--workdir={workdir}"),
            f"--config.total_steps={steps}",
        )
    run(python, "-m", "darl_jax.evaluate", f"--checkpoint={workdir}")
    assert "Goes on from step 3" in capfd.readouterr().err
