#!/usr/bin/env python3
"""Trains on Google Kubernetes Engine as a JobSet: TPU slices, or nodes with NVIDIA GPUs.

    python3 launch/gke_jobset.py [--dry-run] train --config=FILE --workdir=gs://BUCKET/RUN ...

What follows `train` reaches the program untouched, in every pod. --dry-run prints the JobSet and
does nothing. The image holds the code, the environment and the configs:

    docker build -f launch/Dockerfile --build-arg EXTRA=tpu -t IMAGE . && docker push IMAGE

After a preemption the pods start again and the run goes on, after a crash a bounded number of
times. The cluster needs JobSet 0.10 or newer. docs/launching.md tells more.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys

# What you set: here, or in front of the command (SLICES=2 python3 launch/gke_jobset.py ...).
SETTINGS = {
    "JOB_NAME": "darl-jax",  # lower-case letters, digits and -
    "IMAGE": "",  # what docker push gave
    "ACCELERATOR": "",  # tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice; nvidia-h100-80gb, ...
    # TPUs
    "TOPOLOGY": "",  # of one slice, such as 4x4 or 4x4x8
    "SLICES": "1",  # joined over the data center's network
    "CHIPS_PER_HOST": "4",  # 4 where a slice has several hosts; 1, 4 or 8 where it has one
    # GPUs
    "NODES": "1",
    "GPUS_PER_NODE": "8",
    # Both
    "SPOT": "no",  # yes: cheaper, and may be taken away; the run then goes on on others
    "SERVICE_ACCOUNT": "default",  # of Kubernetes, which may read the data and write the workdir
    "SHARED_MEMORY": "32Gi",  # for the data workers; a part of the node's memory
    "GRACE_SECONDS": "300",  # between SIGTERM and SIGKILL: time to save
    "MAX_RESTARTS": "20",  # after crashes, in all; preemptions are not counted
}
PORT = 29400  # on which the first pod waits for the others

# A value in this text is JSON, which is YAML too.
JOBSET = """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: {name}
  annotations:
{annotations}
spec:
  # Pods find each other as JOBSET-workers-SLICE-POD.JOBSET, before they are ready.
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
  failurePolicy:
    maxRestarts: {max_restarts}
    # All pods of the last attempt are gone before the next one begins.
    restartStrategy: BlockingRecreate
    rules:
    # Bad input (2) and numbers that are not finite (3): a restart would not help.
    - name: restart_would_not_help
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: ["exit code (2|3) "]
    # What else the pods' rules below name: saved (75), or the node was taken away.
    - name: saved_or_preempted
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
    # Anything else restarts all, up to maxRestarts.
  replicatedJobs:
  - name: workers
    replicas: {replicas}
    template:
      spec:
        completionMode: Indexed
        parallelism: {hosts}
        completions: {hosts}
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {{containerName: train, operator: In, values: [2, 3]}}
          - action: FailJob
            onExitCodes: {{containerName: train, operator: In, values: [75]}}
          - action: FailJob
            onPodConditions: [{{type: DisruptionTarget, status: "True"}}]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: {grace_seconds}
            serviceAccountName: {service_account}
            nodeSelector:
{node_selector}
            containers:
            - name: train
              image: {image}
              command: {command}
{container}
              volumeMounts:
              - {{name: shared-memory, mountPath: /dev/shm}}
            volumes:
            # The data workers pass pixels through it; a container has 64 MiB by default.
            - name: shared-memory
              emptyDir: {{medium: Memory, sizeLimit: {shared_memory}}}
"""

# GKE sets what a host of a slice needs to know (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES, and between
# slices MEGASCALE_*), and JAX reads it.
TPU_CONTAINER = """\
              securityContext: {{privileged: true}}
              resources:
                limits: {{google.com/tpu: {devices}}}"""

GPU_CONTAINER = """\
              env:
              - name: JAX_COORDINATOR_ADDRESS
                value: {coordinator}
              - name: JAX_NUM_PROCESSES
                value: {processes}
              - name: JAX_PROCESS_ID
                valueFrom:
                  fieldRef:
                    fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
              resources:
                limits: {{nvidia.com/gpu: {devices}}}"""


def read_settings() -> dict[str, str]:
    """The settings, each replaced by an environment variable of its name where there is one.

    Raises:
      ValueError: one that is needed is not set, or is not what it must be.
    """
    settings = {name: os.environ.get(name) or default for name, default in SETTINGS.items()}
    is_tpu = settings["ACCELERATOR"].startswith("tpu")
    for name in ("IMAGE", "ACCELERATOR", *(["TOPOLOGY"] if is_tpu else [])):
        if not settings[name]:
            raise ValueError(
                f"{name} is not set; set it in launch/gke_jobset.py or in front of the command"
            )
    # Kubernetes appends -workers-SLICE-POD to make a host name, of 63 characters at most.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", settings["JOB_NAME"]):
        raise ValueError(
            f"JOB_NAME={settings['JOB_NAME']!r} must be at most 40 lower-case letters, digits and -"
        )
    counts = ("SLICES", "CHIPS_PER_HOST", "NODES", "GPUS_PER_NODE", "GRACE_SECONDS")
    for name in (*counts, "MAX_RESTARTS"):
        if not settings[name].isdecimal() or (name in counts and int(settings[name]) == 0):
            raise ValueError(f"{name}={settings[name]!r} must be a number")
    if settings["SPOT"] not in ("yes", "no"):
        raise ValueError(f"SPOT={settings['SPOT']!r} must be yes or no")
    if is_tpu and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", settings["TOPOLOGY"]):
        raise ValueError(f"TOPOLOGY={settings['TOPOLOGY']!r} must be like 4x4 or 4x4x8")
    return settings


def hosts_of(settings: dict[str, str]) -> int:
    """Pods of one slice, or of the whole run on GPUs.

    Raises:
      ValueError: the chips of the slice cannot be divided so.
    """
    if not settings["ACCELERATOR"].startswith("tpu"):
        return int(settings["NODES"])
    chips = math.prod(int(side) for side in settings["TOPOLOGY"].split("x"))
    hosts, rest = divmod(chips, int(settings["CHIPS_PER_HOST"]))
    if rest:
        raise ValueError(
            f"TOPOLOGY={settings['TOPOLOGY']} has {chips} chips, which is not a multiple of "
            f"CHIPS_PER_HOST={settings['CHIPS_PER_HOST']}"
        )
    return hosts


def jobset(settings: dict[str, str], arguments: list[str]) -> str:
    """The JobSet that trains with `arguments`, as YAML.

    Raises:
      ValueError: the settings do not fit together.
    """
    name = settings["JOB_NAME"]
    hosts = hosts_of(settings)
    annotations = {}
    if settings["ACCELERATOR"].startswith("tpu"):
        node_selector = {
            "cloud.google.com/gke-tpu-accelerator": settings["ACCELERATOR"],
            "cloud.google.com/gke-tpu-topology": settings["TOPOLOGY"],
        }
        if hosts > 1:  # A slice is a node pool; hosts that are slices of their own share one.
            key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
            annotations[key] = "cloud.google.com/gke-nodepool"
        replicas = settings["SLICES"]
        container = TPU_CONTAINER.format(devices=settings["CHIPS_PER_HOST"])
    else:
        node_selector = {"cloud.google.com/gke-accelerator": settings["ACCELERATOR"]}
        replicas = "1"
        container = GPU_CONTAINER.format(
            coordinator=json.dumps(f"{name}-workers-0-0.{name}:{PORT}"),
            processes=json.dumps(str(hosts)),
            devices=settings["GPUS_PER_NODE"],
        )
    if settings["SPOT"] == "yes":
        node_selector["cloud.google.com/gke-spot"] = "true"
    program = ["/venv/bin/python", "-m", "darl_jax.train", *arguments]
    return JOBSET.format(
        name=name,
        annotations=lines(annotations, 4),
        max_restarts=settings["MAX_RESTARTS"],
        replicas=replicas,
        hosts=hosts,
        grace_seconds=settings["GRACE_SECONDS"],
        service_account=json.dumps(settings["SERVICE_ACCOUNT"]),
        node_selector=lines(node_selector, 14),
        image=json.dumps(settings["IMAGE"]),
        # $(NAME) would be replaced by Kubernetes; $$ is a dollar.
        command=json.dumps([word.replace("$", "$$") for word in program]),
        container=container,
        shared_memory=json.dumps(settings["SHARED_MEMORY"]),
    )


def lines(entries: dict[str, str], indent: int) -> str:
    """A YAML mapping, indented; {} where there is nothing."""
    if not entries:
        return " " * indent + "{}"
    return "\n".join(f"{' ' * indent}{key}: {json.dumps(text)}" for key, text in entries.items())


def check_arguments(arguments: list[str]) -> None:
    """Whether the program's paths mean something in a pod.

    Raises:
      ValueError: they do not.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("config", "workdir"):
        parser.add_argument(f"--{flag}", f"-{flag}", default="")
    paths, _ = parser.parse_known_args(arguments)
    if not paths.config or os.path.isabs(paths.config):
        raise ValueError(
            f"--config={paths.config!r} must be a file of the image, such as "
            "configs/darl_vit_b16_mse.py"
        )
    if "://" not in paths.workdir:
        raise ValueError(
            f"--workdir={paths.workdir!r} must be a bucket (gs://BUCKET/RUN): a pod's disk is not "
            "seen by the others, and goes away with it"
        )


def main(words: list[str]) -> int:
    """Creates the JobSet, or prints it; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch/gke_jobset.py",
        description=__doc__.strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--dry-run] train --config=FILE --workdir=gs://BUCKET/RUN ...",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the JobSet, and do nothing")
    parser.add_argument("command", choices=("train",))
    end = words.index("train") if "train" in words else len(words)
    options = parser.parse_args(words[: end + 1])
    arguments = words[end + 1 :]
    try:
        check_arguments(arguments)
        settings = read_settings()
        manifest = jobset(settings, arguments)
        if options.dry_run:
            print(f"# Would be given to kubectl create -f -\n{manifest}", end="")
            return 0
        if not shutil.which("kubectl"):
            raise ValueError(
                "kubectl is not installed (gcloud components install kubectl); look at what would "
                "be done with --dry-run"
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Not apply: it says that all is well when a finished JobSet of that name is still there.
    code = subprocess.run(["kubectl", "create", "-f", "-"], input=manifest, text=True).returncode
    if code == 0:
        name = settings["JOB_NAME"]
        print(
            f"kubectl logs -f -l jobset.sigs.k8s.io/jobset-name={name} --prefix  # follows it\n"
            f"kubectl get jobset {name}  # its state and restarts\n"
            f"kubectl delete jobset {name}  # saves, stops and removes it"
        )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
