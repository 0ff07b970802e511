#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice, or on several of them joined over the data center's network.
#
#   launch/tpu_pod.sh [--dry-run] train --config=FILE --workdir=gs://BUCKET/RUN ...
#
# What follows `train` reaches the program untouched, on every host. Makes the slice when there is
# none, copies the code, installs it, trains, and starts again after a preemption or a crash.
# --dry-run prints the commands and does nothing. Start it on a machine that stays on, in tmux, say;
# Ctrl-C asks the run to save and stop. The slice remains, and costs money, until you delete it.
# docs/launching.md tells more.

# What you set: here, or in front of the command (SLICES=2 launch/tpu_pod.sh ...).
TPU_NAME=${TPU_NAME:-darl-jax}
TPU_ZONE=${TPU_ZONE:-}                 # such as us-west4-a
TPU_TYPE=${TPU_TYPE:-}                 # such as v5litepod-16, v5p-128, v6e-256
RUNTIME=${RUNTIME:-}                   # v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv5 (v5p), ...
GCP_PROJECT=${GCP_PROJECT:-}           # empty: gcloud's default
SLICES=${SLICES:-1}                    # of TPU_TYPE each
SPOT=${SPOT:-no}                       # yes: cheaper, and may be taken away; it is then made anew
REMOTE_PYTHON=${REMOTE_PYTHON:-python3.11} # 3.11 or newer; installed from Ubuntu when missing
MAX_RESTARTS=${MAX_RESTARTS:-5}        # so many crashes in a row are started again

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() {
    echo "[tpu_pod.sh] $(date '+%F %T') $*" >&2
}

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
    for name in TPU_NAME TPU_ZONE TPU_TYPE RUNTIME; do
        [[ -n ${!name} ]] ||
            die "$name is not set; set it in launch/tpu_pod.sh or in front of the command"
    done
    for name in SLICES MAX_RESTARTS; do
        [[ ${!name} =~ ^[0-9]+$ ]] || die "$name='${!name}' must be a number"
    done
    ((SLICES > 0)) || die "SLICES=0 must be at least 1"
    [[ $SPOT == yes || $SPOT == no ]] || die "SPOT='$SPOT' must be yes or no"
    workdir=$(flag workdir "$@")
    [[ $workdir == gs://?* ]] || die "--workdir='$workdir' must be a bucket (gs://BUCKET/RUN): a" \
        "host's disk is not seen by the others, and goes away with the slice"
    config=$(flag config "$@")
    [[ -f $root/$config ]] || die "--config='$config' must be a file of the repository, such as" \
        "configs/darl_vit_b16_mse.py: that is what is copied to the hosts"
}

# gcloud compute tpus queued-resources ACTION ...; printed with --dry-run.
tpus() {
    local command=(gcloud compute tpus queued-resources "$@" --zone="$TPU_ZONE" --quiet)
    [[ -z $GCP_PROJECT ]] || command+=(--project="$GCP_PROJECT")
    if [[ -n $dry_run ]]; then
        printf '%q ' "${command[@]}"
        echo
    else
        "${command[@]}"
    fi
}

# A command on every host of every slice. Left to itself gcloud takes 64 hosts, waits until they are
# done, and only then takes the next.
on_all() {
    tpus ssh "$TPU_NAME" --node=all --worker=all --batch-size=all --command="$1"
}

create() {
    local options=(--accelerator-type="$TPU_TYPE" --runtime-version="$RUNTIME")
    if ((SLICES == 1)); then
        options+=(--node-id="$TPU_NAME")
    else
        options+=(--node-count="$SLICES" --node-prefix="$TPU_NAME")
    fi
    [[ $SPOT == no ]] || options+=(--spot)
    tpus create "$TPU_NAME" "${options[@]}"
}

# CREATING, ACTIVE, SUSPENDED, ...; nothing where there is no such slice.
slice_state() {
    tpus list --filter="name ~ /$TPU_NAME\$" --format="value(state.state)"
}

# Returns when the slice is there; 1 when it cannot be had.
ensure_slice() {
    local state last=
    while true; do
        if ! state=$(slice_state); then
            ((attempt > 0)) || return 1
            state=unknown # a run of days outlives a network that fails
        fi
        [[ $state == "$last" ]] || say "slice $TPU_NAME: ${state:-not there}"
        last=$state
        case $state in
            ACTIVE) return 0 ;;
            "") create || return 1 ;;
            SUSPENDED) tpus delete "$TPU_NAME" --force || return 1 ;;
            FAILED)
                say "the slice cannot be made; gcloud compute tpus queued-resources describe" \
                    "$TPU_NAME --zone=$TPU_ZONE tells why. Delete it and start again"
                return 1
                ;;
        esac
        sleep 30
    done
}

# Bash for every host: unpack the code and install; quick where it was done before.
remote_install() {
    printf 'python=%q\n' "$REMOTE_PYTHON"
    cat <<'REMOTE'
set -e
mkdir -p ~/darl_jax && cd ~/darl_jax
rm -rf darl_jax configs launch
tar -xzf ~/darl_jax.tgz
if ! command -v "$python" >/dev/null; then
    sudo apt-get -o DPkg::Lock::Timeout=300 update -q
    sudo apt-get -o DPkg::Lock::Timeout=300 install -qy "$python" "$python-venv"
fi
"$python" launch/local.py --extra tpu --extra buckets install
REMOTE
}

# Bash for every host: become the program. gcloud runs a command again whose connection broke; then
# one host would start anew and wait for the others, which have long been running.
remote_train() {
    printf 'attempt=%q\nprogram=( .venv/bin/python -m darl_jax.train' "$1"
    shift
    printf ' %q' "$@"
    cat <<'REMOTE'
 )
cd ~/darl_jax || exit 1
running=$(cat process 2>/dev/null)
if [[ -n $running ]] && grep -qs darl_jax.train "/proc/$running/cmdline"; then
    while kill -9 "$running" 2>/dev/null; do sleep 1; done
fi
if [[ $(cat attempt 2>/dev/null) == "$attempt" ]]; then
    echo "$HOSTNAME: the connection broke; all processes are started again" >&2
    exit 1
fi
echo "$attempt" >attempt
echo $$ >process
exec "${program[@]}"
REMOTE
}

# Copies, installs and trains once; returns the exit code of the program.
run_once() {
    local attempt=$1 running
    shift
    tpus scp "$code" "$TPU_NAME:darl_jax.tgz" --node=all --worker=all --batch-size=all || return 1
    on_all "$(remote_install)" || return 1
    # A terminal sends Ctrl-C to all processes; the connections must outlive it.
    (
        trap '' INT
        on_all "$(remote_train "$attempt" "$@")"
    ) &
    running=$!
    while kill -0 $running 2>/dev/null; do
        wait $running || true # a signal ends it before gcloud has ended
    done
    wait $running
}

# Ctrl-C and SIGTERM: the program saves and leaves with 75.
stop() {
    stopping=yes
    say "asks all hosts to save and stop"
    # shellcheck disable=SC2016 # the hosts expand it
    on_all 'kill -TERM "$(cat ~/darl_jax/process)"' || true
}

# Starts again for as long as it makes sense; exits with the last exit code of the program.
train() {
    local attempt=0 crashes=0 result
    while true; do
        ensure_slice || exit 1
        attempt=$((attempt + 1))
        result=0
        run_once "$$-$attempt" "$@" || result=$?
        say "attempt $attempt ended with exit code $result"
        case $result in 0 | 2 | 3) exit "$result" ;; esac
        [[ -z $stopping ]] || exit "$result"
        if [[ $result == 75 || $(slice_state) != ACTIVE ]]; then
            crashes=0 # saved, or the slice was taken away
        elif ((++crashes > MAX_RESTARTS)); then
            say "stays down after $MAX_RESTARTS restarts"
            exit "$result"
        fi
        sleep 10 # in which the old processes' connections end
    done
}

dry_run=
stopping=
while (($#)); do
    case $1 in
        --dry-run) dry_run=yes ;;
        -h | --help)
            sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        train) break ;;
        *) die "'$1' is not understood; usage: launch/tpu_pod.sh [--dry-run] train --config=..." ;;
    esac
    shift
done
(($#)) || die "nothing to do; usage: launch/tpu_pod.sh [--dry-run] train --config=... --workdir=..."
shift
check "$@"

sources=(darl_jax configs launch setup.py pyproject.toml requirements.txt README.md LICENSE)
if [[ -n $dry_run ]]; then
    code=darl_jax.tgz
    echo "# Where there is no slice of that name, or a suspended one (which is deleted first):"
    create
    echo "# Once it is ACTIVE, with the code of $root:"
    echo "tar -czf $code ${sources[*]}"
    tpus scp "$code" "$TPU_NAME:darl_jax.tgz" --node=all --worker=all --batch-size=all
    on_all "$(remote_install)"
    on_all "$(remote_train 1 "$@")"
    echo "# Again after exit code 75 or a preemption, and after $MAX_RESTARTS crashes in a row;" \
        "not after 0, 2 and 3. In the end, yours to do:"
    tpus delete "$TPU_NAME" --force
    exit 0
fi
command -v gcloud >/dev/null || die "gcloud is not installed (https://cloud.google.com/sdk); look" \
    "at what would be done with --dry-run"

scratch=$(mktemp -d)
code=$scratch/darl_jax.tgz
finish() {
    rm -rf "$scratch"
    say "the slice is left as it is; to delete it: gcloud compute tpus queued-resources delete" \
        "$TPU_NAME --zone=$TPU_ZONE --force"
}
trap finish EXIT
trap stop INT TERM
# Once, so that every attempt runs the same code.
tar -czf "$code" -C "$root" --exclude=__pycache__ "${sources[@]}"
train "$@"
