#!/usr/bin/env bash
# Trains on the GPUs of one machine.
#
#   launch/gpu.sh [OPTIONS] -- --config=configs/vits.py --workdir=DIR ...
#
# Starts one process per GPU that nvidia-smi lists, supervised by launch/local.sh, whose
# other options are accepted too. --config.data.workers counts per process.
#
#   --count N        use N GPUs instead of all
#   --flags NAME     a profile of launch/flags (default: none)
#   --dry-run        print the commands
#   --help           show this help
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

count='' own=()
while (($#)); do
  case $1 in
    --help | -h) usage "${BASH_SOURCE[0]}"; exit ;;
    --count) set_option count "$1" "${2-}"; shift ;;
    --) break ;;
    *) own+=("$1") ;;
  esac
  shift
done
if [[ -z $count ]]; then
  command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi here: give --count N"
  count=$(nvidia-smi --list-gpus | grep -c ^GPU) || fail "nvidia-smi lists no GPU"
fi
exec "$LAUNCH/local.sh" "$count" --gpus "${own[@]}" "$@"
