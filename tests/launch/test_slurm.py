"""launch/slurm.sh: what it submits, and when a job goes back into the queue."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.clusters import AWKWARD, SLURM, SLURM_COMMAND, Cluster, train, wait_for

pytestmark = pytest.mark.process


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def batch_script(cluster: Cluster, settings: dict[str, str], *arguments: str) -> Path:
    """What slurm.sh gives to sbatch."""
    (cluster.folder / "bin" / "python").write_text("")
    (cluster.folder / "bin" / "python").chmod(0o755)
    cluster.command("sbatch", "cat >$CLUSTER/job.sh")
    command = [*SLURM_COMMAND, *train(*arguments)]
    result = cluster.run(command, SLURM | {"DARL_JAX_VENV": str(cluster.folder)} | settings)
    assert (result.returncode, result.stderr) == (0, "")
    return cluster.folder / "job.sh"


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "darl", "SLURM_CPUS_PER_TASK": "8"}


def run_job(
    cluster: Cluster, script: Path, code: int, state: str = "RUNNING"
) -> subprocess.CompletedProcess[str]:
    """Runs the batch script as SLURM would; srun ends with this code."""
    cluster.command("srun", f"exit {code}")
    cluster.command("scontrol", f"[[ $1 != show ]] || echo 'JobId=7 JobState={state} Reason=None'")
    return cluster.run(["bash", str(script)], JOB, cwd=cluster.folder)


def test_slurm_asks_for_a_task_and_cores_for_each_gpu_and_a_signal_before_the_limit(cluster):
    settings = {"NODES": "3", "CPUS_PER_GPU": "12", "TIME_LIMIT": "1:00:00", "SAVE_SECONDS": "90"}
    settings |= {"PARTITION": "gpu", "ACCOUNT": "me", "MORE_OPTIONS": "--mem=0 --exclusive"}
    script = batch_script(cluster, settings).read_text()
    options = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert " ".join(options) == (
        "--job-name=darl_jax --nodes=3 --gpus-per-node=4 --ntasks-per-node=4 --cpus-per-task=12 "
        "--time=1:00:00 --signal=TERM@90 --requeue --open-mode=append --output=%x-%j.log "
        "--partition=gpu --account=me --mem=0 --exclusive"
    )
    dry = cluster.run(
        [*SLURM_COMMAND, "--dry-run", *train()],
        SLURM | settings | {"DARL_JAX_VENV": str(cluster.folder)},
    )
    assert dry.stdout == f"# Would be given to sbatch:\n{script}"


def test_slurm_hands_every_argument_to_srun_untouched(cluster):
    run_job(cluster, batch_script(cluster, {}, *AWKWARD), 0)
    (call,) = cluster.calls("srun")
    program = call[call.index(f"{cluster.folder}/bin/python") :]
    assert program[1:] == ["-m", "darl_jax.train", *train(*AWKWARD)[1:]]
    # Every process must see all GPUs of its node and its share of the cores.
    assert "--gpu-bind=none" in call and "--cpus-per-task=8" in call


def test_slurm_requeues_after_saving_and_crashes_up_to_the_bound_and_not_after_bad_input(cluster):
    script = batch_script(cluster, {"MAX_RESTARTS": "2"})
    requeued = []
    for code in (0, 2, 3, 1, 137, 75, 1, 143, 1):
        before = len(cluster.calls("scontrol", "requeue"))
        assert run_job(cluster, script, code).returncode == code
        calls = cluster.calls("scontrol", "requeue")[before:]
        assert calls in ([], [["scontrol", "requeue", "7"]])
        requeued.append(len(calls))
    assert requeued == [0, 0, 0, 1, 1, 1, 1, 1, 0]


def test_slurm_leaves_a_job_alone_that_was_cancelled_or_is_requeued_already(cluster):
    script = batch_script(cluster, {})
    for state in ("COMPLETING", "CANCELLED", "PENDING", "REQUEUED"):
        assert run_job(cluster, script, 75, state).returncode == 75
    assert cluster.calls("scontrol", "requeue") == []


def test_a_sigterm_to_the_whole_batch_step_reaches_the_tasks_and_not_srun(cluster):
    script = batch_script(cluster, {})
    # The real srun answers SIGTERM with SIGKILL to its tasks, which would end it with 137.
    cluster.command(
        "srun",
        "trap 'exit 137' TERM; touch $CLUSTER/started\n"
        "for ((i = 0; i < 1000; i++)); do\n"
        "    [[ ! -e $CLUSTER/signalled ]] || exit 75; /bin/sleep 0.02\ndone",
    )
    cluster.command("scancel", "touch $CLUSTER/signalled")
    cluster.command("scontrol", "echo JobState=RUNNING")
    process = subprocess.Popen(
        ["bash", str(script)],
        env=cluster.environment(JOB),
        cwd=cluster.folder,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(cluster.folder / "started")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(120) == 75
    assert cluster.calls("scancel") == [["scancel", "--signal=TERM", "7"]]
    assert cluster.calls("scontrol", "requeue") == [["scontrol", "requeue", "7"]]


def test_the_signal_that_a_requeue_sends_is_not_passed_on(cluster):
    script = batch_script(cluster, {})
    cluster.command("srun", "exit 75")
    # Requeueing ends the batch script too, beginning with SIGTERM.
    cluster.command(
        "scontrol", "if [[ $1 == show ]]; then echo JobState=RUNNING; else kill -TERM $PPID; fi"
    )
    result = cluster.run(["bash", str(script)], JOB, cwd=cluster.folder)
    assert result.returncode == 75
    assert cluster.calls("scancel") == []
