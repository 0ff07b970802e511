"""launch/gke_jobset.py: the JobSet, and what Kubernetes makes of exit codes."""

import math
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.clusters import (
    AWKWARD,
    GKE_COMMAND,
    GKE_GPU,
    GKE_TPU,
    ROOT,
    Cluster,
    train,
)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def manifest(cluster: Cluster, settings: dict[str, str], *arguments: str) -> dict:
    """What gke_jobset.py gives to kubectl."""
    cluster.command("kubectl", "cat >$CLUSTER/jobset.yaml")
    result = cluster.run([*GKE_COMMAND, *train(*arguments)], settings)
    assert (result.returncode, result.stderr) == (0, "")
    assert cluster.calls() == [["kubectl", "create", "-f", "-"]]
    text = (cluster.folder / "jobset.yaml").read_text()
    dry = cluster.run([*GKE_COMMAND, "--dry-run", *train(*arguments)], settings).stdout
    assert dry == f"# Would be given to kubectl create -f -\n{text}"
    return yaml.safe_load(text)


def parts(jobset: dict) -> tuple[dict, dict, dict]:
    """The replicated job, its pods' spec, and their container."""
    (workers,) = jobset["spec"]["replicatedJobs"]
    pod = workers["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return workers, pod, container


def test_a_jobset_has_a_pod_for_each_host_of_each_slice(cluster):
    settings = GKE_TPU | {"SLICES": "2", "SPOT": "yes", "CHIPS_PER_HOST": "4"}
    workers, pod, container = parts(manifest(cluster, settings))
    job = workers["template"]["spec"]
    assert workers["replicas"] == 2
    assert job["parallelism"] == job["completions"] == math.prod((4, 8)) // 4
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    assert "env" not in container  # GKE tells the hosts of a slice


def test_a_jobset_for_gpus_tells_each_pod_its_place(cluster):
    jobset = manifest(cluster, GKE_GPU | {"JOB_NAME": "b16"})
    workers, pod, container = parts(jobset)
    assert workers["replicas"] == 1
    assert workers["template"]["spec"]["parallelism"] == 3
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    address, count, index = container["env"]
    # JobSet's name for pod 0 of job 0: <jobset>-<replicated job>-<job>-<pod>.<jobset>
    host = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{jobset['metadata']['name']}"
    assert (address["name"], address["value"].split(":")[0]) == ("JAX_COORDINATOR_ADDRESS", host)
    assert (count["name"], count["value"]) == ("JAX_NUM_PROCESSES", "3")
    assert index["name"] == "JAX_PROCESS_ID"
    field = index["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize("settings", [GKE_TPU, GKE_GPU])
def test_a_pod_gets_every_argument_untouched_time_to_save_and_shared_memory(settings, cluster):
    _, pod, container = parts(manifest(cluster, settings | {"GRACE_SECONDS": "77"}, *AWKWARD))
    # Kubernetes reads $(NAME) as a variable and $$ as a dollar.
    assert all("$" not in word.replace("$$", "") for word in container["command"])
    words = [word.replace("$$", "$") for word in container["command"]]
    assert words == ["/venv/bin/python", "-m", "darl_jax.train", *train(*AWKWARD)[1:]]
    assert pod["terminationGracePeriodSeconds"] == 77
    assert container["volumeMounts"] == [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"


def outcome(jobset: dict, code: int | None) -> str:
    """What Kubernetes and JobSet do about a pod's exit code, or about a lost node (None).

    As written in Kubernetes' "Pod failure policy" and JobSet's KEP 262, messages included.
    """
    workers, pod, container = parts(jobset)
    assert pod["restartPolicy"] == "Never"  # what a pod failure policy asks for
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    rules = workers["template"]["spec"]["podFailurePolicy"]["rules"]
    for index, rule in enumerate(rules):
        exits = rule.get("onExitCodes")
        if exits and exits["containerName"] == container["name"] and code in exits["values"]:
            what = f"Container {container['name']} for pod ns/p failed with exit code {code}"
        elif code is None and "onPodConditions" in rule:
            what = f"Pod ns/p has condition {rule['onPodConditions'][0]['type']}"
        else:
            continue
        assert rule["action"] == "FailJob"
        reason, message = "PodFailurePolicy", f"{what} matching FailJob rule at index {index}"
        break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"  # the default, bounded by maxRestarts


def test_kubernetes_restarts_after_saving_and_preemption_freely_after_crashes_boundedly(cluster):
    jobset = manifest(cluster, GKE_TPU | {"MAX_RESTARTS": "6"})
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 6
    assert {code: outcome(jobset, code) for code in (2, 3, 75, None, 1, 23, 137, 143)} == {
        2: "FailJobSet",
        3: "FailJobSet",
        75: "RestartJobSetAndIgnoreMaxRestarts",
        None: "RestartJobSetAndIgnoreMaxRestarts",
        1: "RestartJobSet",
        23: "RestartJobSet",
        137: "RestartJobSet",
        143: "RestartJobSet",
    }


def test_a_topology_that_hosts_cannot_divide_is_named(cluster):
    result = cluster.run([*GKE_COMMAND, *train()], GKE_TPU | {"TOPOLOGY": "3x3"})
    assert result.returncode == 2
    assert "TOPOLOGY=3x3 has 9 chips" in result.stderr


def test_the_image_copies_what_an_installation_reads():
    text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
    copied = {
        word for line in text.splitlines() if line.startswith("COPY ") for word in shlex.split(line)
    }
    assert {
        "setup.py",
        "requirements.txt",
        "pyproject.toml",
        "darl_jax",
        "launch",
        "configs",
    } <= copied
    assert all((ROOT / word).exists() for word in copied - {"COPY", "./"})
