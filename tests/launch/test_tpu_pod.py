"""launch/tpu_pod.sh: when it starts again, and what the hosts are told."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters import AWKWARD, ROOT, TPU, TPU_COMMAND, Cluster, train, wait_for


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


# Has a slice in the state that the file `state` holds; training ends with the next of `codes`.
GCLOUD = r"""
cd $CLUSTER
case "$4 $*" in
    list*) cat state 2>/dev/null || true ;;
    create*) echo ACTIVE >state ;;
    delete*) rm state ;;
    ssh*kill\ -TERM*) touch signalled ;;
    ssh*darl_jax.train*)
        touch started
        code=$(head -n 1 codes); sed -i 1d codes
        case $code in
            preempted) echo SUSPENDED >state; exit 1 ;;
            waits) while [[ ! -e signalled ]]; do /bin/sleep 0.02; done; exit 75 ;;
            *) exit $code ;;
        esac ;;
esac
"""


def run_pod(
    cluster: Cluster, codes: str, settings: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs tpu_pod.sh where training ends with these codes, one after the other."""
    (cluster.folder / "codes").write_text(codes.replace(" ", "\n") + "\n")
    cluster.command("gcloud", GCLOUD)
    return cluster.run([*TPU_COMMAND, *train(*arguments)], TPU | settings)


def actions(cluster: Cluster) -> list[str]:
    """The third word of each gcloud call; `train` and `install` for the two uses of ssh."""
    names = []
    for call in cluster.calls("gcloud"):
        text = " ".join(call)
        kind = (
            "stop" if "kill -TERM" in text else "train" if "darl_jax.train" in text else "install"
        )
        names.append(kind if call[4] == "ssh" else call[4])
    return [name for name in names if name != "list"]


def test_a_pod_starts_again_after_saving_and_stops_on_bad_input(cluster):
    result = run_pod(cluster, "75 75 75 2 0", {"MAX_RESTARTS": "1"})
    assert result.returncode == 2
    assert actions(cluster) == ["create", *["scp", "install", "train"] * 4]


@pytest.mark.parametrize("code", ["0", "3"])
def test_a_pod_stops_at_the_end_and_when_numbers_are_not_finite(code, cluster):
    assert run_pod(cluster, f"{code} 0", {}).returncode == int(code)
    assert actions(cluster).count("train") == 1


def test_a_pod_starts_again_after_crashes_in_a_row_up_to_the_bound(cluster):
    result = run_pod(cluster, "1 1 75 1 139 1 0", {"MAX_RESTARTS": "2"})
    assert result.returncode == 1
    assert actions(cluster).count("train") == 6


def test_a_preempted_slice_is_deleted_and_made_anew_and_is_no_crash(cluster):
    result = run_pod(cluster, "preempted preempted 0", {"MAX_RESTARTS": "0", "SPOT": "yes"})
    assert result.returncode == 0
    once = ["create", "scp", "install", "train"]
    assert actions(cluster) == [*once, "delete", *once, "delete", *once]
    assert all("--spot" in call for call in cluster.calls("gcloud", "compute", "tpus", *QR_CREATE))


QR_CREATE = ("queued-resources", "create")


def test_a_slice_that_cannot_be_made_ends_the_launcher(cluster):
    (cluster.folder / "state").write_text("FAILED\n")
    result = run_pod(cluster, "0", {})
    assert result.returncode == 1 and "cannot be made" in result.stderr
    assert actions(cluster) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_pods_launcher_saves_and_does_not_start_again(number, cluster):
    (cluster.folder / "codes").write_text("waits\n0\n")
    cluster.command("gcloud", GCLOUD)
    process = subprocess.Popen(
        [*TPU_COMMAND, *train()],
        env=cluster.environment(TPU),
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(cluster.folder / "started")
    # A terminal sends Ctrl-C to the whole group.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    assert process.wait(120) == 75
    assert actions(cluster) == ["create", "scp", "install", "train", "stop"]


@pytest.mark.parametrize("settings", [{}, {"SLICES": "2", "SPOT": "yes", "GCP_PROJECT": "p"}])
def test_a_pods_dry_run_prints_the_commands_that_a_run_gives(settings, cluster):
    def without_names(calls: list[list[str]]) -> list[list[str]]:
        words = [[re.sub(r"^/.*\.tgz$", "darl_jax.tgz", word) for word in call] for call in calls]
        return [
            [re.sub("attempt=.*", "attempt=", word) for word in call]
            for call in words
            if call[4] != "list"
        ]

    run_pod(cluster, "0", settings, *AWKWARD)
    real = without_names(cluster.calls("gcloud"))
    (cluster.folder / "calls").unlink()
    dry = cluster.run([*TPU_COMMAND, "--dry-run", *train(*AWKWARD)], TPU | settings)
    commands = "\n".join(line for line in dry.stdout.splitlines() if not line.startswith("tar "))
    cluster.command("gcloud", "true")
    cluster.run(["bash"], {}, text=commands)
    *printed, delete = without_names(cluster.calls("gcloud"))
    assert printed == real
    assert delete[4] == "delete"
    create = real[0]
    assert ("--node-count=2" in create) == ("--spot" in create) == bool(settings)
    assert ("--node-id=darl-jax" in create) == (not settings)
    # gcloud would take hosts in groups, one group after the other.
    assert all("--batch-size=all" in call for call in real if call[4] in ("ssh", "scp"))


@pytest.fixture
def host(cluster: Cluster) -> Path:
    """The home folder of a host whose Python writes down its arguments."""
    python = cluster.folder / "darl_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\" >~/arguments\nexit 75\n")
    python.chmod(0o755)
    return cluster.folder


def host_command(cluster: Cluster, *arguments: str) -> str:
    """What a host is told to run to train."""
    run_pod(cluster, "0", {}, *arguments)
    word = next(w for w in cluster.calls("gcloud")[-1] if w.startswith("--command="))
    return word.removeprefix("--command=")


def test_a_host_gets_every_argument_untouched_and_gives_the_exit_code(cluster, host):
    command = host_command(cluster, *AWKWARD)
    assert cluster.run(["bash", "-c", command], {}).returncode == 75
    words = (host / "arguments").read_text().split("\0")[:-1]
    assert words == ["-m", "darl_jax.train", *train(*AWKWARD)[1:]]


def test_a_host_whose_connection_broke_is_not_started_alone(cluster, host):
    command = host_command(cluster)
    cluster.run(["bash", "-c", command], {})
    (host / "arguments").unlink()
    again = cluster.run(["bash", "-c", command], {})
    assert again.returncode == 1 and "connection broke" in again.stderr
    assert not (host / "arguments").exists()


@pytest.mark.parametrize(("name", "killed"), [("darl_jax.train", True), ("another", False)])
def test_a_host_ends_what_is_left_of_the_last_attempt_and_nothing_else(name, killed, cluster, host):
    # A process id of before a reboot may belong to anything.
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(290)", name])
    (host / "darl_jax" / "process").write_text(f"{left.pid}\n")
    # Reaped here, as init does on a host.
    command = subprocess.Popen(
        ["bash", "-c", host_command(cluster)], env=cluster.environment({}), cwd=ROOT
    )
    try:
        if killed:
            assert left.wait(120) == -signal.SIGKILL
        assert command.wait(120) == 75
        assert (left.poll() is not None) == killed
    finally:
        left.kill()
        left.wait()
