#!/usr/bin/env python3
"""Trains on Google Kubernetes Engine as a JobSet: TPU slices, or nodes with NVIDIA GPUs.

    python3 launch/gke_jobset.py [--dry-run] train --config=FILE --workdir=gs://BUCKET/RUN ...

What follows `train` reaches the program untouched, in every pod. --dry-run prints the JobSet, which
`kubectl create -f -` takes. The image holds the code, the environment and the configs:

    docker build -f launch/Dockerfile --build-arg EXTRA=tpu -t IMAGE . && docker push IMAGE

After a preemption the pods start again and the run goes on, after a crash a bounded number of
times. The cluster needs JobSet 0.10 or newer (docs/launching.md).
"""

import json
import math
import os
import subprocess
import sys
from typing import Any

# Set here, or in front of the command (SLICES=2 python3 launch/gke_jobset.py ...).
SETTINGS = {
    "JOB_NAME": "darl-jax",
    "IMAGE": "",  # as pushed by docker
    "ACCELERATOR": "",  # tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice; nvidia-h100-80gb, ...
    "TOPOLOGY": "",  # of one TPU slice, such as 4x4 or 4x4x8
    "SLICES": "1",  # TPU slices, joined over the data center's network
    "CHIPS_PER_HOST": "4",  # 4 where a TPU slice has several hosts; 1, 4 or 8 where it has one
    "NODES": "1",  # GPU nodes
    "GPUS_PER_NODE": "8",
    "SPOT": "no",  # yes: cheaper, and may be taken away
    "SERVICE_ACCOUNT": "default",  # of Kubernetes; reads the data and writes the workdir
    "SHARED_MEMORY": "32Gi",  # for data workers; a part of the node's memory
    "GRACE_SECONDS": "300",  # between SIGTERM and SIGKILL, to save
    "MAX_RESTARTS": "20",  # after crashes; preemptions are not counted
}
PORT = 29400  # on which the first pod waits for the others


def jobset(settings: dict[str, str], arguments: list[str]) -> dict[str, Any]:
    """JobSet that trains with `arguments`, as JSON values."""
    name = settings["JOB_NAME"]
    metadata: dict[str, Any] = {"name": name}
    container: dict[str, Any] = {"name": "train", "image": settings["IMAGE"]}
    # Kubernetes would replace $(NAME); $$ is a dollar.
    program = ["/venv/bin/python", "-m", "darl_jax.train", *arguments]
    container["command"] = [word.replace("$", "$$") for word in program]
    container["volumeMounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    if settings["ACCELERATOR"].startswith("tpu"):
        # GKE sets the variables by which JAX finds the hosts of a slice and the slices.
        chips = math.prod(int(side) for side in settings["TOPOLOGY"].split("x"))
        slices, hosts = int(settings["SLICES"]), chips // int(settings["CHIPS_PER_HOST"])
        selector = {
            "cloud.google.com/gke-tpu-accelerator": settings["ACCELERATOR"],
            "cloud.google.com/gke-tpu-topology": settings["TOPOLOGY"],
        }
        if hosts > 1:  # A slice is a node pool; hosts that are slices of their own share one.
            key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
            metadata |= {"annotations": {key: "cloud.google.com/gke-nodepool"}}
        container["securityContext"] = {"privileged": True}
        container["resources"] = {"limits": {"google.com/tpu": settings["CHIPS_PER_HOST"]}}
    else:
        slices, hosts = 1, int(settings["NODES"])
        selector = {"cloud.google.com/gke-accelerator": settings["ACCELERATOR"]}
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        container["env"] = [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-workers-0-0.{name}:{PORT}"},
            {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
            {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        ]
        container["resources"] = {"limits": {"nvidia.com/gpu": settings["GPUS_PER_NODE"]}}
    if settings["SPOT"] == "yes":
        selector["cloud.google.com/gke-spot"] = "true"
    shared_memory = {"medium": "Memory", "sizeLimit": settings["SHARED_MEMORY"]}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": int(settings["GRACE_SECONDS"]),
        "serviceAccountName": settings["SERVICE_ACCOUNT"],
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": shared_memory}],
    }

    def fails_on(*codes: int) -> dict[str, Any]:
        exits = {"containerName": "train", "operator": "In", "values": codes}
        return {"action": "FailJob", "onExitCodes": exits}

    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    job = {
        "completionMode": "Indexed",
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                fails_on(2, 3),
                fails_on(75),
                {"action": "FailJob", "onPodConditions": disrupted},
            ]
        },
        "template": {"spec": pod},
    }
    by_policy = ["PodFailurePolicy"]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            # Pods find each other before they are ready.
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": int(settings["MAX_RESTARTS"]),
                "restartStrategy": "BlockingRecreate",  # All pods are gone before new ones come.
                "rules": [
                    {  # A restart would not help bad input (2) or a diverged run (3).
                        "name": "final",
                        "action": "FailJobSet",
                        "onJobFailureReasons": by_policy,
                        "onJobFailureMessagePatterns": ["exit code (2|3) "],
                    },
                    {  # Saved (75), or the node was taken away.
                        "name": "saved_or_preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": by_policy,
                    },
                ],
            },
            "replicatedJobs": [{"name": "workers", "replicas": slices, "template": {"spec": job}}],
        },
    }


def main(words: list[str]) -> None:
    """Creates the JobSet, or prints it."""
    dry_run, words = words[:1] == ["--dry-run"], words[words[:1] == ["--dry-run"] :]
    if words[:1] != ["train"]:
        print(__doc__)
        sys.exit(0 if words[:1] in (["-h"], ["--help"]) else 2)
    settings = {name: os.environ.get(name) or default for name, default in SETTINGS.items()}
    needed = ["IMAGE", "ACCELERATOR"]
    needed += ["TOPOLOGY"] if settings["ACCELERATOR"].startswith("tpu") else []
    for name in needed:
        if not settings[name]:
            sys.exit(f"error: set {name} in launch/gke_jobset.py or in front of the command")
    if not any("workdir=" in word and "://" in word for word in words):
        sys.exit("error: --workdir=gs://BUCKET/RUN is needed: pods do not see each other's disks")
    text = json.dumps(jobset(settings, words[1:]), indent=1)
    if dry_run:
        print(text)
        return
    # Not apply, which accepts a finished JobSet of that name.
    code = subprocess.run(["kubectl", "create", "-f", "-"], input=text, text=True).returncode
    if code == 0:
        name = settings["JOB_NAME"]
        print(f"kubectl logs -f -l jobset.sigs.k8s.io/jobset-name={name} --prefix  # follows it")
        print(f"kubectl delete jobset {name}  # saves, stops and removes it")
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
