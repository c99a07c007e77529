#!/usr/bin/env bash
# Trains on a TPU slice (v5p, v6e, TPU7x) of a Compute Engine managed instance group.
#
#   launch/tpu_mig.sh VERB --name N --zone Z [OPTIONS] [-- --config=... --workdir=...]
#
#   create   create a workload policy, an instance template and a group, all named N,
#            and wait for its hosts (--machine ct6e-standard-4t --topology 4x4 --size 4)
#   install  copy this repository to every host and set it up with jax[tpu]
#   run      train on every host and wait for the end
#   watch    do all of that; repeat it if hosts were lost, which the group replaces, or
#            the run ended with exit code 42 or 75, or by a signal. Same as `resume`
#   logs     follow the log of the first host
#   status, stop, delete
#
#   --name, --zone   name and zone of the slice (or TPU_NAME, TPU_ZONE)
#   --project P      project (or CLOUDSDK_CORE_PROJECT); required by create
#   --machine M      machine type of a host
#   --topology T     number of chips along each axis
#   --size S         number of hosts: chips of the topology / chips of a machine
#   --image F        image family of the project ubuntu-os-accelerator-images
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

machine=${TPU_MACHINE-} topology=${TPU_TOPOLOGY-} size=${TPU_SIZE-}
image=${TPU_IMAGE-}
parse "--machine --topology --size --image" "$@"
region=${zone%-*}
port=8476 # port of the first process
addresses=()

create() {
  need project "--project or CLOUDSDK_CORE_PROJECT is missing"
  need machine "--machine or TPU_MACHINE is missing, for example ct6e-standard-4t"
  need topology "--topology or TPU_TOPOLOGY is missing, for example 4x4"
  need size "--size or TPU_SIZE is missing: the number of hosts"
  need image "--image or TPU_IMAGE is missing: an image family, see --help"
  need_number --size "$size"
  local spot_options=()
  if [[ $spot ]]; then
    spot_options=(--provisioning-model=SPOT --instance-termination-action=DELETE)
  fi
  {
    run gcloud compute resource-policies create workload-policy "$name" \
      --project="$project" --region="$region" --type=HIGH_THROUGHPUT \
      --accelerator-topology="$topology" &&
      run gcloud compute instance-templates create "$name" --project="$project" \
        --machine-type="$machine" --image-project=ubuntu-os-accelerator-images \
        --image-family="$image" --maintenance-policy=TERMINATE \
        --scopes=cloud-platform "${spot_options[@]}" &&
      run gcloud compute instance-groups managed create "$name" "${where[@]}" \
        --template="$name" --size="$size" --target-size-policy-mode=bulk \
        --workload-policy="projects/$project/regions/$region/resourcePolicies/$name"
  } || {
    say "creating $name failed: if none of it is in use, the verb delete removes its parts"
    return 1
  }
}

describe() {
  run gcloud compute instance-groups managed describe "$name" "${where[@]}"
}

delete() {
  local failed=0 # what is not there must not keep the rest
  run gcloud compute instance-groups managed delete "$name" "${where[@]}" --quiet ||
    failed=1
  run gcloud compute instance-templates delete "$name" "${where[@]:1}" --quiet ||
    failed=1
  run gcloud compute resource-policies delete "$name" --region="$region" \
    "${where[@]:1}" --quiet || failed=1
  return "$failed"
}

# Prints "NAME ADDRESS" of each running host.
list() {
  ask "$name-0000 10.0.0.1
$name-0001 10.0.0.2" gcloud compute instances list "${where[@]:1}" \
    --zones="$zone" --filter="name~^$name-[a-z0-9]{4}\$ AND status=RUNNING" \
    --sort-by=name --format="value[separator=' '](name,networkInterfaces[0].networkIP)"
}

wanted() {
  query 2 gcloud compute instance-groups managed describe "$name" "${where[@]}" \
    --format="value(targetSize)"
}

state() {
  local target there
  target=$(wanted)
  if [[ ! $target =~ ^[0-9]+$ ]]; then echo "${target:-NONE}"; return; fi
  there=$(list | grep -c .) || true
  if ((there == target)); then echo READY; else echo "$there of $target hosts"; fi
}

find_hosts() {
  local lines
  lines=$(list)
  if [[ -z $lines ]]; then
    say "no host of $name is running"
    return 1
  fi
  mapfile -t hosts < <(cut -d' ' -f1 <<<"$lines")
  mapfile -t addresses < <(cut -d' ' -f2 <<<"$lines")
}

on_host() { # I COMMAND
  local i children=() failed=0
  if [[ $1 != all ]]; then
    run gcloud compute ssh "${hosts[$1]}" "${where[@]}" --command="$2"
    return
  fi
  for i in "${!hosts[@]}"; do
    if [[ $DRY_RUN ]]; then
      on_host "$i" "$2"
    else
      on_host "$i" "$2" &
      children+=($!)
    fi
  done
  for i in "${children[@]}"; do wait "$i" || failed=1; done
  return "$failed"
}

copy_to_all() { # FILE
  local host
  for host in "${hosts[@]}"; do
    run gcloud compute scp "$1" "$host:$1" "${where[@]}" || return
  done
}

# Given explicitly, because it is not known whether jax detects the slice.
cluster_flags() { # I
  echo "--coordinator=${addresses[0]}:$port --num_processes=${#hosts[@]} --process_id=$1"
}

do_verb
