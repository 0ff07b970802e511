#!/usr/bin/env bash
# Trains on a SLURM cluster with NVIDIA GPUs: one process for each GPU, on one or more nodes.
#
#   launch/slurm.sh [--dry-run] train --config=FILE --workdir=FOLDER ...
#
# What follows `train` reaches the program untouched. --dry-run prints the batch script and does
# nothing. Install once before, on a machine that has a network and shares its files with the nodes:
#
#   python3 launch/local.py --extra gpu install
#
# The job saves before its time limit and when it is preempted, and goes back into the queue by
# itself. docs/launching.md tells more.

# What you set: here, or in front of the command (NODES=4 launch/slurm.sh ...).
NODES=${NODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-}     # how many GPUs a node has
CPUS_PER_GPU=${CPUS_PER_GPU:-8}      # cores for each GPU and its process's data workers
TIME_LIMIT=${TIME_LIMIT:-24:00:00}   # of one stay on the nodes; the run itself may take many
PARTITION=${PARTITION:-}             # empty: the cluster's default
ACCOUNT=${ACCOUNT:-}                 # empty: your default
MORE_OPTIONS=${MORE_OPTIONS:-}       # any others of sbatch: "--mem=0 --exclusive"
JOB_NAME=${JOB_NAME:-darl_jax}
SAVE_SECONDS=${SAVE_SECONDS:-300}    # how long before the time limit the job begins to save
MAX_RESTARTS=${MAX_RESTARTS:-5}      # after so many crashes in a row the job stays down

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${DARL_JAX_VENV:-$root/.venv}/bin/python

die() {
    echo "error: $*" >&2
    exit 2
}

# The value of the last --NAME=value or --NAME value.
flag() {
    local name=$1 argument before=
    shift
    for argument in "$@"; do
        case $argument in "--$name="* | "-$name="*) echo "${argument#*=}" ;; esac
        case $before in "--$name" | "-$name") echo "$argument" ;; esac
        before=$argument
    done | tail -n 1
}

check() {
    local name workdir config
    [[ $JOB_NAME =~ ^[A-Za-z0-9_.-]+$ ]] ||
        die "JOB_NAME='$JOB_NAME' may hold letters, digits, _ . and -"
    for name in NODES GPUS_PER_NODE CPUS_PER_GPU SAVE_SECONDS MAX_RESTARTS; do
        [[ ${!name} =~ ^[0-9]+$ ]] || die "$name='${!name}' must be a number; set it in" \
            "launch/slurm.sh or in front of the command"
    done
    workdir=$(flag workdir "$@")
    [[ -n $workdir ]] || die "--workdir is needed: a folder that all nodes share, or a bucket"
    [[ $workdir == *://* ]] || workdir=$(realpath -m -- "$workdir")
    case $workdir/ in
        /tmp/* | /var/tmp/* | /dev/shm/*)
            die "--workdir=$workdir is on each node's own disk; give a folder that all nodes" \
                "share, or a bucket"
            ;;
    esac
    config=$(flag config "$@")
    [[ -f ${config%%:*} ]] || die "--config='$config': there is no such file here"
}

# The batch script: first what depends on the settings, then what does not.
batch_script() {
    local option
    cat <<SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=$JOB_NAME
#SBATCH --nodes=$NODES
#SBATCH --gpus-per-node=$GPUS_PER_NODE
#SBATCH --ntasks-per-node=$GPUS_PER_NODE
#SBATCH --cpus-per-task=$CPUS_PER_GPU
#SBATCH --time=$TIME_LIMIT
#SBATCH --signal=TERM@$SAVE_SECONDS
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
SCRIPT
    [[ -z $PARTITION ]] || echo "#SBATCH --partition=$PARTITION"
    [[ -z $ACCOUNT ]] || echo "#SBATCH --account=$ACCOUNT"
    for option in $MORE_OPTIONS; do
        echo "#SBATCH $option"
    done
    printf '\nmax_restarts=%d\n' "$MAX_RESTARTS"
    printf 'program=('
    printf ' %q' "$python" -m darl_jax.train "$@"
    printf ' )\n\n'
    cat <<'SCRIPT'
# One task for each GPU, as JAX takes it to be under SLURM. Each must see all GPUs of its node, for
# it takes the one of its local number and reaches the others directly: no --gpus-per-task, and no
# --gpu-bind that hides them.
#
# The processes end each other when one fails, all with the same exit code. srun waits for that:
# with --kill-on-bad-exit it would end the rest as soon as the first has saved and left with 75, and
# might report their death instead. --wait is for a process that does not end even so.
#
# SLURM signals the tasks, and when it takes the nodes away this shell too. srun must not get
# SIGTERM, for it passes it on as SIGKILL: setsid keeps it apart from this shell's process group,
# and a signal that only this shell has got goes to the tasks through scancel (which is refused,
# and not needed, when the job is ending already).
trap 'scancel --signal=TERM "$SLURM_JOB_ID" 2>/dev/null' TERM
setsid srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --gpu-bind=none "${program[@]}" &
while kill -0 $! 2>/dev/null; do
    wait $! # a signal ends it before srun has ended
done
wait $!
code=$?
trap '' TERM

say() {
    echo "[slurm.sh] $(date '+%F %T') job $SLURM_JOB_ID: $*"
}

requeue() {
    local state
    state=$(scontrol show job --oneliner "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*')
    case ${state#JobState=} in
        # Cancelled, and so it stays; or preempted, and SLURM requeues it.
        COMPLETING | CANCELLED | PENDING | PREEMPTED | REQUEUE*) say "is left to SLURM ($state)" ;;
        *)
            say "goes back into the queue"
            scontrol requeue "$SLURM_JOB_ID"
            ;;
    esac
}

crashes=$SLURM_JOB_NAME-$SLURM_JOB_ID.crashes # a line for each since the last exit code 75
case $code in
    0)
        say "finished"
        rm -f "$crashes"
        ;;
    2 | 3) say "exit code $code: a restart would not help" ;;
    75)
        say "saved; requeued ${SLURM_RESTART_COUNT:-0} times before"
        rm -f "$crashes"
        requeue
        ;;
    *)
        date >>"$crashes"
        if (($(wc -l <"$crashes") > max_restarts)); then
            say "exit code $code: stays down after $max_restarts restarts"
        else
            say "exit code $code: crash $(wc -l <"$crashes"), $max_restarts restarts allowed"
            requeue
        fi
        ;;
esac
exit "$code"
SCRIPT
}

dry_run=
while (($#)); do
    case $1 in
        --dry-run) dry_run=yes ;;
        -h | --help)
            sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        train) break ;;
        *) die "'$1' is not understood; usage: launch/slurm.sh [--dry-run] train --config=..." ;;
    esac
    shift
done
(($#)) || die "nothing to do; usage: launch/slurm.sh [--dry-run] train --config=... --workdir=..."
shift
check "$@"
if [[ -n $dry_run ]]; then
    echo "# Would be given to sbatch:"
    batch_script "$@"
    exit 0
fi
command -v sbatch >/dev/null || die "sbatch is not installed; start this on a login node of the" \
    "cluster, or look at it with --dry-run"
[[ -x $python ]] || die "there is no $python; install first: python3 launch/local.py" \
    "--extra gpu install"
batch_script "$@" | sbatch
