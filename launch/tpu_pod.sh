#!/usr/bin/env bash
# Trains on a Cloud TPU slice.
#
#   launch/tpu_pod.sh [--dry-run] train --config=FILE --workdir=gs://BUCKET/RUN ...
#
# What follows `train` reaches the program untouched, on every host. Creates the slice if it does
# not exist, copies the code, installs it, trains, and starts again after a preemption or a crash.
# --dry-run prints the commands. Start it on a machine that stays on, in tmux for example; Ctrl-C
# asks the run to save and stop. The slice remains, and costs money, until you delete it.

# Set here, or in front of the command (SPOT=yes launch/tpu_pod.sh ...).
TPU_NAME=${TPU_NAME:-darl-jax}
TPU_ZONE=${TPU_ZONE:-}                     # such as us-west4-a
TPU_TYPE=${TPU_TYPE:-}                     # such as v5litepod-16, v5p-128, v6e-256
RUNTIME=${RUNTIME:-}                       # v2-alpha-tpuv5-lite (v5e), v2-alpha-tpuv5 (v5p), ...
SPOT=${SPOT:-no}                           # yes: cheaper, and may be taken away
REMOTE_PYTHON=${REMOTE_PYTHON:-python3.11} # installed from Ubuntu where it is missing
MAX_RESTARTS=${MAX_RESTARTS:-5}            # crashes in a row after which it gives up

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
usage="usage: launch/tpu_pod.sh [--dry-run] train --config=FILE --workdir=gs://BUCKET/RUN ..."

die() {
    echo "error: $*" >&2
    exit 2
}

tpu() { # gcloud compute tpus tpu-vm ACTION ...
    local command=(gcloud compute tpus tpu-vm "$@" --zone="$TPU_ZONE" --quiet)
    if [[ -n $dry_run ]]; then
        printf '%q ' "${command[@]}"
        echo
    else
        "${command[@]}"
    fi
}

on_all_hosts() {
    tpu ssh "$TPU_NAME" --worker=all --command="$1"
}

create() {
    local spot=()
    [[ $SPOT != yes ]] || spot=(--spot)
    tpu create "$TPU_NAME" --accelerator-type="$TPU_TYPE" --version="$RUNTIME" "${spot[@]}"
}

state() {
    tpu describe "$TPU_NAME" --format="value(state)" 2>/dev/null
}

install() {
    tpu scp "$code" "$TPU_NAME:darl_jax.tgz" --worker=all && on_all_hosts "set -e
mkdir -p darl_jax && cd darl_jax && rm -rf darl_jax configs launch && tar -xzf ~/darl_jax.tgz
command -v $REMOTE_PYTHON >/dev/null || { sudo apt-get -q update &&
    sudo apt-get -qy install $REMOTE_PYTHON $REMOTE_PYTHON-venv; }
$REMOTE_PYTHON launch/local.py --extra tpu --extra buckets install"
}

train() { # A process that an earlier attempt left would hold the chips.
    on_all_hosts "cd darl_jax; old=\$(cat process 2>/dev/null)
grep -qs darl_jax.train \"/proc/\$old/cmdline\" && kill -9 \"\$old\" && sleep 5; echo \$\$ >process
exec .venv/bin/python -m darl_jax.train$(printf ' %q' "$@")"
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
    dry_run=yes
    shift
fi
[[ ${1:-} == train ]] || die "$usage"
shift
for name in TPU_ZONE TPU_TYPE RUNTIME; do
    [[ -n ${!name} ]] || die "set $name in launch/tpu_pod.sh or in front of the command"
done
[[ " $*" =~ \ --?workdir=gs://. ]] || die "--workdir must be a bucket, which all hosts see; $usage"

code=$(mktemp)
trap 'rm -f "$code"' EXIT
# Once, so that every attempt runs the same code.
tar -czf "$code" --exclude=__pycache__ \
    darl_jax configs launch setup.py pyproject.toml requirements.txt README.md LICENSE
if [[ -n $dry_run ]]; then
    create
    install
    train "$@"
    exit
fi
command -v gcloud >/dev/null || die "gcloud is not installed (https://cloud.google.com/sdk)"

stopping=
# shellcheck disable=SC2016 # the hosts expand it
trap 'stopping=yes; on_all_hosts "kill -TERM \$(cat darl_jax/process)"' INT TERM
crashes=0
while true; do
    case $(state) in
        READY) ;;
        "") create || exit 1 ;;
        *) tpu delete "$TPU_NAME" && create || exit 1 ;; # preempted
    esac
    result=1
    if install; then
        (trap '' INT && train "$@") & # Ctrl-C in a terminal must not reach the connections.
        while kill -0 $! 2>/dev/null; do
            wait $! # a signal ends it early
        done
        wait $!
        result=$?
    fi
    echo "[tpu_pod.sh] $(date '+%F %T') ended with exit code $result" >&2
    [[ -z $stopping && ! $result =~ ^[023]$ ]] || break
    if [[ $result == 75 || $(state) != READY ]]; then
        crashes=0
    elif ((++crashes > MAX_RESTARTS)); then
        break
    fi
done
echo "[tpu_pod.sh] the slice remains: gcloud compute tpus tpu-vm delete $TPU_NAME" \
    "--zone=$TPU_ZONE" >&2
exit "$result"
