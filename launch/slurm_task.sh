#!/usr/bin/env bash
# A task of launch/slurm.sbatch: runs a command and passes SIGTERM and SIGUSR1 on.
#
#   launch/slurm_task.sh VERDICT COMMAND...
#
# If one task fails, srun kills the others and returns the largest exit code. So an exit
# code that a restart cannot fix (2, 3) is written to the file VERDICT.
#
#   --dry-run        print the command
#   --help           show this help
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
trap 'kill -USR1 "$!" 2>/dev/null || true' USR1 # requests a trace
(trap '' USR1 && exec "$@") & # ignored until the run handles it
child=$!
while true; do
  code=0
  wait "$child" || code=$?
  # A signal also interrupts `wait`, before or after the child's end; 127: unknown.
  if ((code == 143 || code == 138)) && kill -0 "$child" 2>/dev/null; then continue; fi
  break
done
if ((code == 143 || code == 138)); then
  late=0
  wait "$child" 2>/dev/null || late=$?
  if ((late != 127)); then code=$late; fi
fi
case $code in
  2 | 3) { echo "$code" >"$verdict"; } 2>/dev/null || say "cannot write $verdict" ;;
esac
exit "$code"
