#!/usr/bin/env bash
# Trains on TPUs or GPUs of a GKE cluster with JobSet and Kueue.
#
#   launch/gke.sh setup --queue Q --quota CHIPS       once: Kueue's queue, rbac.yaml
#   launch/gke.sh run tpu --name N --queue Q --image I --claim C \
#     --accelerator tpu-v6e-slice --topology 4x4 --hosts 4 --chips 4 -- --config=... ...
#   launch/gke.sh run gpu --name N --queue Q --image I --claim C \
#     --accelerator nvidia-h100-80gb --hosts 4 --chips 8 -- --config=... ...
#   launch/gke.sh logs | status | delete --name N
#
# The manifests are in launch/gke/; launch/gke/Dockerfile builds the image. All pods are
# restarted together, unless the run ended with exit code 0, 2 or 3.
#
#   --name N         name of the JobSet (or GKE_NAME)
#   --namespace S    Kubernetes namespace (default: default)
#   --queue Q        Kueue's LocalQueue (or GKE_QUEUE)
#   --quota CHIPS    chips of the queue, for setup
#   --image I        container image (or GKE_IMAGE)
#   --claim C        PersistentVolumeClaim that all pods can write to, mounted at /data,
#                    for --workdir and images (or GKE_CLAIM)
#   --accelerator A  node label gke-tpu-accelerator or gke-accelerator
#   --topology T     node label gke-tpu-topology
#   --hosts H        hosts of a slice; for GPUs: nodes
#   --chips C        chips per host (default: 4 for TPUs, 8 for GPUs)
#   --slices S       TPU slices, connected by the network (default: 1)
#   --account A      service account of the pods (default: default)
#   --flags NAME     a profile of launch/flags (default: none)
#   --restarts COUNT maximum number of restarts (default: 50)
#   --dry-run        print the manifest or command
#   --help           show this help
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2034 # `render` reads them by name
{
  name=${GKE_NAME-} namespace=default queue=${GKE_QUEUE-} quota='' image=${GKE_IMAGE-}
  claim=${GKE_CLAIM-} accelerator='' topology='' hosts='' chips='' slices=1
  account=default flags='' restarts=50 verb='' kind=''
}
while (($#)); do
  case $1 in
    --help | -h) usage "${BASH_SOURCE[0]}"; exit ;;
    --dry-run) DRY_RUN=1 ;;
    --name | --namespace | --queue | --quota | --image | --claim | --accelerator | \
      --topology | --hosts | --chips | --slices | --account | --flags | --restarts)
      set_option "${1#--}" "$1" "${2-}"
      shift
      ;;
    --) shift; break ;;
    -*) fail "unknown option $1: see --help" ;;
    *)
      if [[ -z $verb ]]; then
        verb=$1
      elif [[ $verb == run && -z $kind ]]; then
        kind=$1
      else
        fail "unknown argument $1: those of the run come after --"
      fi
      ;;
  esac
  shift
done
need verb "what is to be done? see --help"

# Prints a text as a YAML string.
yaml() {
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

arguments() { # ARGS...: print the lines of the container's `args`
  local argument variable="\$(" text="\$\$("
  for argument in "$@"; do
    # Kubernetes expands $(NAME) as a variable; $$(NAME) is the plain text.
    printf '                    - %s\n' "$(yaml "${argument//"$variable"/"$text"}")"
  done
}

variables() { # LINES: print a profile as the lines of the container's `env`
  local line
  while IFS= read -r line; do
    [[ -n $line ]] || continue
    printf '                    - name: %s\n                      value: %s\n' \
      "${line%%=*}" "$(yaml "${line#*=}")"
  done <<<"$1"
}

# Prints a manifest of launch/gke with its @WORDS@ replaced and without comments.
render() { # FILE: uses the variables above, `args` and `env`
  local text word variable
  text=$(grep -v '^ *#' "$LAUNCH/gke/$1")
  text=${text//"                    - @ARGS@"/${args-}}
  text=${text//"                    - @ENV@"/${env-}}
  for word in NAME NAMESPACE QUEUE QUOTA IMAGE CLAIM ACCELERATOR TOPOLOGY HOSTS CHIPS \
    SLICES ACCOUNT RESTARTS; do
    variable=${word,,}
    text=${text//@$word@/${!variable}}
  done
  printf '%s\n' "$text" | sed '/^$/d'
}

apply() { # MANIFEST
  if [[ $DRY_RUN ]]; then
    printf '%s\n' "$1"
  else
    kubectl apply -f - <<<"$1"
  fi
}

on_cluster() {
  need name "--name or GKE_NAME is missing"
  run kubectl --namespace="$namespace" "$@"
}

submit() { # ARGS...
  case $kind in
    tpu) chips=${chips:-4} ;;
    gpu) chips=${chips:-8} ;;
    *) fail "run tpu or run gpu: see --help" ;;
  esac
  need name "--name or GKE_NAME is missing"
  need queue "--queue or GKE_QUEUE is missing"
  need image "--image or GKE_IMAGE is missing"
  need claim "--claim or GKE_CLAIM is missing"
  need accelerator "--accelerator is missing"
  need hosts "--hosts is missing"
  [[ $kind == gpu || -n $topology ]] || fail "--topology is missing"
  local option env args all
  for option in hosts chips slices restarts; do need_number "--$option" "${!option}"; done
  env=$(profile "$flags")
  env=$(variables "$env")
  all=("$@" "--config.mesh.processes=$((hosts * slices))")
  args=$(arguments "${all[@]}")
  apply "$(render "jobset-$kind.yaml")"
}

case $verb in
  setup)
    need queue "--queue or GKE_QUEUE is missing"
    need quota "--quota is missing: chips that runs of the queue may have"
    need_number --quota "$quota"
    apply "$(render kueue.yaml)"
    apply "---"$'\n'"$(render rbac.yaml)"
    ;;
  run) submit "$@" ;;
  logs)
    on_cluster logs --follow --container=train \
      --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
    ;;
  status)
    on_cluster get pods --output=wide \
      --selector="jobset.sigs.k8s.io/jobset-name=$name"
    ;;
  delete) on_cluster delete jobset "$name" ;;
  *) fail "unknown verb $verb: see --help" ;;
esac
