#!/usr/bin/env bash
# One task of launch/slurm.sbatch: runs a command and passes SIGTERM and SIGUSR1 on.
#
#   launch/slurm_task.sh VERDICT COMMAND...
#
# srun's exit code is the largest of its tasks, of which it kills the rest when one
# fails. So an exit code that no restart can help (2, 3) is written to the file VERDICT.
#
#   --dry-run        print the command
#   --help           this
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1-} == --help ]]; then usage "${BASH_SOURCE[0]}"; exit; fi
if [[ ${1-} == --dry-run ]]; then DRY_RUN=1; shift; fi
(($# > 1)) || fail "a file and a command are needed: see --help"
verdict=$1
shift
if [[ $DRY_RUN ]]; then run "$@"; exit; fi

# SLURM may signal this shell alone, or it and its child.
trap 'kill -TERM "$!" 2>/dev/null || true' TERM
trap 'kill -USR1 "$!" 2>/dev/null || true' USR1 # which asks a run for a trace
(trap '' USR1 && exec "$@") & # until it listens
child=$!
while true; do
  code=0
  wait "$child" || code=$?
  # A signal also ends `wait`, while the child runs or after its end; 127: no news.
  if ((code == 143 || code == 138)) && kill -0 "$child" 2>/dev/null; then continue; fi
  break
done
if ((code == 143 || code == 138)); then
  late=0
  wait "$child" 2>/dev/null || late=$?
  if ((late != 127)); then code=$late; fi
fi
case $code in
  2 | 3) echo "$code" >"$verdict" ;;
esac
exit "$code"
