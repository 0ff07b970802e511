"""Launchers of clusters: the commands that they give, with every argument of the program intact."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters import AWKWARD, ROOT, SLURM, SLURM_COMMAND, Cluster, train

pytestmark = pytest.mark.process

TPU = {"TPU_ZONE": "z", "TPU_TYPE": "v5litepod-16", "RUNTIME": "v2-alpha-tpuv5-lite"}
GKE_TPU = {"IMAGE": "i:1", "ACCELERATOR": "tpu-v6e-slice", "TOPOLOGY": "4x8", "SLICES": "2"}
GKE_GPU = {"IMAGE": "i:1", "ACCELERATOR": "nvidia-h100-80gb", "NODES": "3"}
TPU_COMMAND = ["bash", "launch/tpu_pod.sh"]
GKE_COMMAND = [sys.executable, "launch/gke_jobset.py"]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        (SLURM_COMMAND, {}, "GPUS_PER_NODE"),
        (TPU_COMMAND, {}, "TPU_ZONE"),
        (GKE_COMMAND, {}, "IMAGE"),
        (GKE_COMMAND, {"IMAGE": "i", "ACCELERATOR": "tpu-v6e-slice"}, "TOPOLOGY"),
    ],
)
def test_missing_setting_is_named_in_one_line(command, settings, message, cluster):
    result = cluster.run([*command, "--dry-run", *train()], settings)
    assert result.returncode != 0
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_tpu_pod_creates_installs_and_trains_by_gcloud(cluster):
    result = cluster.run([*TPU_COMMAND, "--dry-run", *train(*AWKWARD)], TPU | {"SPOT": "yes"})
    assert (result.returncode, result.stderr) == (0, "")
    script = re.sub(r"/\S*/tmp\.\w+", "CODE", result.stdout)
    cluster.command("gcloud", "true")
    assert cluster.run(["bash"], {}, text=script).returncode == 0
    create, copy, install, start = cluster.calls("gcloud")
    last = ["--zone=z", "--quiet"]
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    kind = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert create == [*vm, "create", "darl-jax", *kind, *last]
    assert copy == [*vm, "scp", "CODE", "darl-jax:darl_jax.tgz", "--worker=all", *last]
    assert install[:7] == start[:7] == [*vm, "ssh", "darl-jax", "--worker=all"]
    assert "launch/local.py --extra tpu --extra buckets install" in install[7]
    # A host's shell leaves every argument as it was.
    host = start[7].removeprefix("--command=").replace("cd darl_jax;", "").split("exec ")[1]
    words = host.replace(".venv/bin/python", "printf '%s\\0'")
    printed = subprocess.run(["bash", "-c", words], capture_output=True, text=True).stdout
    assert printed.split("\0")[:-1] == ["-m", "darl_jax.train", *train(*AWKWARD)[1:]]


@pytest.mark.parametrize(
    ("codes", "restarts"), [([2], 0), ([3], 0), ([75, 1, 1, 1], 3), ([75, 1, 0], 2)]
)
def test_tpu_pod_starts_again_after_saving_and_a_few_crashes(codes, restarts, cluster):
    (cluster.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    cluster.command(
        "gcloud",
        "[[ $4 != describe ]] || echo READY\n[[ $* == *darl_jax.train\\ * ]] || exit 0\n"
        "code=$(head -n 1 $CLUSTER/codes); sed -i 1d $CLUSTER/codes; exit $code",
    )
    result = cluster.run([*TPU_COMMAND, *train()], TPU | {"MAX_RESTARTS": "2"})
    assert result.returncode == codes[-1], result.stderr
    started = [call for call in cluster.calls("gcloud") if "exec .venv" in call[-3]]
    assert len(started) == restarts + 1


@pytest.mark.parametrize("settings", [GKE_TPU, GKE_GPU])
def test_jobset_has_a_pod_for_each_host_and_decides_on_restarts_by_exit_codes(settings, cluster):
    result = cluster.run([*GKE_COMMAND, "--dry-run", *train(*AWKWARD)], settings)
    assert (result.returncode, result.stderr) == (0, "")
    spec = json.loads(result.stdout)["spec"]
    (workers,) = spec["replicatedJobs"]
    job = workers["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    slices, hosts = (2, 8) if settings is GKE_TPU else (1, 3)
    assert (workers["replicas"], job["parallelism"], job["completions"]) == (slices, hosts, hosts)
    words = [word.replace("$$", "$") for word in container["command"]]
    assert words[1:] == ["-m", "darl_jax.train", *train(*AWKWARD)[1:]]
    exits = [rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"][:2]]
    assert exits == [[2, 3], [75]]
    actions = [rule["action"] for rule in spec["failurePolicy"]["rules"]]
    assert actions == ["FailJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    names = [variable["name"] for variable in container.get("env", [])]
    jax = ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]
    assert names == ([] if settings is GKE_TPU else jax)


def test_pods_own_disk_is_refused_as_workdir(cluster):
    for command, settings in ((TPU_COMMAND, TPU), (GKE_COMMAND, GKE_GPU)):
        arguments = ["train", "--config=configs/digits.py", "--workdir=/runs/a"]
        result = cluster.run([*command, "--dry-run", *arguments], settings)
        assert result.returncode != 0 and "--workdir" in result.stderr
    result = cluster.run(
        [*SLURM_COMMAND, "--dry-run", "train", "--config=configs/digits.py", "--workdir=/tmp/a"],
        SLURM,
    )
    assert result.returncode == 2 and "each node's own disk" in result.stderr


def test_image_copies_the_files_that_an_installation_reads():
    dockerfile = (ROOT / "launch" / "Dockerfile").read_text()
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "darl_jax"):
        assert re.search(rf"^COPY .*\b{re.escape(name)}\b", dockerfile, re.MULTILINE)
