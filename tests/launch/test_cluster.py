"""What launch/slurm.sh, tpu_pod.sh and gke_jobset.py have in common."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.clusters import (
    CONFIG,
    GKE_COMMAND,
    GKE_TPU,
    ROOT,
    SLURM,
    SLURM_COMMAND,
    TPU,
    TPU_COMMAND,
    Cluster,
    train,
)

LAUNCHERS = [
    pytest.param(SLURM_COMMAND, SLURM, "sbatch", id="slurm"),
    pytest.param(TPU_COMMAND, TPU, "gcloud", id="tpu_pod"),
    pytest.param(GKE_COMMAND, GKE_TPU, "kubectl", id="gke_jobset"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("name", ["slurm.sh", "tpu_pod.sh"])
def test_bash_can_parse_the_launcher(name: str):
    subprocess.run(["bash", "-n", ROOT / "launch" / name], check=True)


@pytest.mark.parametrize(("command", "settings", "tool"), LAUNCHERS)
def test_help_and_dry_run_need_no_cluster_and_call_nothing(command, settings, tool, cluster):
    (cluster.folder / "bin" / tool).unlink()
    assert "--workdir=" in cluster.run([*command, "--help"], {}).stdout
    result = cluster.run([*command, "--dry-run", *train()], settings)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--workdir=gs://bucket/run" in result.stdout
    assert cluster.calls() == []


@pytest.mark.parametrize(("command", "settings", "tool"), LAUNCHERS)
@pytest.mark.parametrize(
    ("change", "arguments", "named"),
    [
        ({}, [], "usage|required"),
        ({}, ["evaluate"], "evaluate"),
        ({}, ["--dryrun", *train()], "--dryrun"),
        ({}, ["train", f"--config={CONFIG}"], "--workdir"),
        ({}, ["train", f"--config={CONFIG}", "--workdir", "/tmp/run"], "--workdir='?/tmp/run"),
        ({}, ["train", "--workdir=gs://bucket/run"], "--config"),
        ({"MAX_RESTARTS": "some"}, train(), "MAX_RESTARTS='some'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    command, settings, tool, change, arguments, named, cluster
):
    result = cluster.run([*command, *arguments], settings | change)
    assert result.returncode == 2
    assert re.search(named, result.stderr.splitlines()[-1])
    # argparse adds its usage.
    assert len(result.stderr.splitlines()) == 1 or result.stderr.startswith("usage")
    assert cluster.calls() == []


@pytest.mark.parametrize(
    ("command", "settings", "name"),
    [
        *((SLURM_COMMAND, SLURM, name) for name in SLURM),
        *((TPU_COMMAND, TPU, name) for name in TPU),
        *((GKE_COMMAND, GKE_TPU, name) for name in GKE_TPU),
    ],
)
def test_a_setting_that_is_missing_is_named(command, settings, name, cluster):
    result = cluster.run([*command, *train()], settings | {name: ""})
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and name in result.stderr


@pytest.mark.parametrize(("command", "settings", "tool"), LAUNCHERS)
def test_a_cluster_command_that_is_missing_is_named(command, settings, tool, cluster):
    (cluster.folder / "bin" / tool).unlink()
    # The stand-ins' folder alone, and what the launchers themselves need.
    for needed in ("bash", "dirname", "tail", "realpath", "env"):
        target = next(p for p in (Path("/usr/bin", needed), Path("/bin", needed)) if p.exists())
        (cluster.folder / "bin" / needed).symlink_to(target)
    result = cluster.run(
        [*command, *train()], settings | {"PATH": str(cluster.folder / "bin"), "DARL_JAX_VENV": "/"}
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and f"{tool} is not installed" in result.stderr


@pytest.mark.parametrize("command", [TPU_COMMAND, GKE_COMMAND])
@pytest.mark.parametrize("workdir", ["runs/x", "/home/me/runs"])
def test_a_pods_own_disk_is_refused_as_workdir(command, workdir, cluster):
    arguments = ["train", f"--config={CONFIG}", f"--workdir={workdir}"]
    result = cluster.run([*command, *arguments], TPU | GKE_TPU)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "gs://" in result.stderr
