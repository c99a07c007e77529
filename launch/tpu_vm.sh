#!/usr/bin/env bash
# Trains on a Cloud TPU slice (v4, v5e) that a queued resource provides.
#
#   launch/tpu_vm.sh VERB --name N --zone Z [OPTIONS] [-- --config=... --workdir=...]
#
#   create   request the slice (--type v5litepod-64) and wait for it
#   install  copy this repository to every host and set it up with jax[tpu]
#   run      train on every host and wait for the end
#   watch    do all of that; repeat it if the slice was preempted or the run ended with
#            exit code 42 or 75, or by a signal. Same as `resume`
#   logs     follow the log of the first host
#   status, stop, delete
#
#   --name, --zone   name and zone of the slice (or TPU_NAME, TPU_ZONE)
#   --project P      project (default: gcloud's)
#   --type T         accelerator type
#   --version V      runtime version (default: v2-alpha-tpuv5-lite, for v5e)
#   --spot           cheaper, but may be preempted
#   --python P       Python on the hosts, 3.11 or newer (default: python3.11)
#   --flags NAME     a profile of launch/flags (default: none)
#   --restarts COUNT maximum for watch (default: 50)
#   --poll SECONDS   time between checks (default: 60)
#   --dry-run        print the commands
#   --help           show this help
#
# --workdir must be a folder that all hosts see, such as a bucket mounted by gcsfuse.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
source "$LAUNCH/tpu_common.sh"

type=${TPU_TYPE-} version=v2-alpha-tpuv5-lite
parse "--type --version" "$@"

create() {
  need type "--type or TPU_TYPE is missing, for example v5litepod-64"
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    ${spot:+--spot}
}

describe() {
  run gcloud compute tpus queued-resources describe "$name" "${where[@]}"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

state() {
  local now
  now=$(query ACTIVE gcloud compute tpus queued-resources describe "$name" \
    "${where[@]}" --format="value(state.state)")
  case $now in
    ACTIVE) echo READY ;;
    FAILED | SUSPENDING | SUSPENDED) echo GONE ;;
    *) echo "$now" ;;
  esac
}

find_hosts() {
  local count
  count=$(ask 2 gcloud compute tpus tpu-vm describe "$name" "${where[@]}" \
    --format="value(networkEndpoints.len())")
  need_number "the number of hosts" "$count"
  mapfile -t hosts < <(seq 0 $((count - 1)))
}

on_host() { # I COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

copy_to_all() { # FILE
  run gcloud compute tpus tpu-vm scp "$1" "$name:$1" "${where[@]}" --worker=all
}

cluster_flags() { # I: jax reads the metadata of the slice
  :
}

do_verb
