"""Stand-ins for the commands of clusters."""

import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/digits.py:mse"

# What a shell, YAML or Kubernetes would change if it were not quoted.
AWKWARD = ["--config.data.mean=(0.5, 0.5)", "--x=$(HOME) $HOME `id`", "--y='\"{}%s\\", "--z=a: #b"]

SLURM = {"GPUS_PER_NODE": "4"}
SLURM_COMMAND = ["bash", "launch/slurm.sh"]


class Cluster:
    """A folder of stand-ins for a cluster's commands, which write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        self.command("sleep", "true")
        # The machine may have the real ones.
        for name in ("sbatch", "srun", "scontrol", "scancel", "gcloud", "kubectl"):
            self.command(name, "exit 99")

    def command(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        record = f"printf '%s\\0' {name} \"$@\" >>$CLUSTER/calls; printf '\\n\\0' >>$CLUSTER/calls"
        path.write_text(f"#!/bin/bash\n{'true' if name == 'sleep' else record}\n{body}\n")
        path.chmod(0o755)

    def calls(self, *start: str) -> list[list[str]]:
        """The calls so far that begin with these words."""
        if not (self.folder / "calls").exists():
            return []
        calls = (self.folder / "calls").read_text().split("\0\n\0")[:-1]
        found = [call.split("\0") for call in calls]
        return [call for call in found if call[: len(start)] == list(start)]

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        return {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            "CLUSTER": str(self.folder),
        } | settings

    def run(
        self, command: list[str], settings: dict[str, str], cwd: Path = ROOT, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment(settings),
            cwd=cwd,
            input=text,
            capture_output=True,
            text=True,
            timeout=200,
        )


def train(*more: str) -> list[str]:
    return ["train", f"--config={CONFIG}", "--workdir=gs://bucket/run", *more]


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120  # on a busy machine
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.01)
