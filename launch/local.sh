#!/usr/bin/env bash
# Trains with several processes on this machine.
#
#   launch/local.sh N [OPTIONS] -- --config=configs/vits.py --workdir=DIR ...
#
# N processes on the CPU (JAX_PLATFORMS=cpu) or, with --gpus, with one GPU each. If one
# fails, all are ended. They restart and resume if it ended with exit code 42 (saved,
# asks for a restart) or 75 (a machine failed), or by a signal (128 and above, but not
# Ctrl-C).
# SIGTERM and Ctrl-C are passed on. If several processes fail, the most informative exit
# code is returned.
#
#   --gpus            process I sees GPU I and no other
#   --flags NAME      a profile of launch/flags (default: none)
#   --restarts COUNT  maximum number of restarts (default: 10)
#   --grace SECONDS   time from SIGTERM until the rest is killed (default: 180)
#   --port PORT       port of process 0 (default: from this process's id)
#   --dry-run         print the commands
#   --help            show this help
#
# PYTHON sets an interpreter other than .venv/bin/python.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

count='' gpus='' flags='' restarts=10 grace=180 port=$((20000 + $$ % 12000))
while (($#)); do
  case $1 in
    --help | -h) usage "${BASH_SOURCE[0]}"; exit ;;
    --dry-run) DRY_RUN=1 ;;
    --gpus) gpus=1 ;;
    --flags | --restarts | --grace | --port)
      set_option "${1#--}" "$1" "${2-}"
      shift
      ;;
    --) shift; break ;;
    *)
      [[ -z $count ]] || fail "unknown option $1: see --help"
      count=$1
      ;;
  esac
  shift
done
need count "how many processes? launch/local.sh 2 -- --config=configs/debug.py"
need_number N "$count"
((count)) || fail "N=0: at least one process is needed"
for option in restarts grace port; do need_number "--$option" "${!option}"; done
find_python
apply_profile "$flags"
cd -- "$REPOSITORY"

# Sets the array `command`. Each attempt uses a new port: the last may still be closing.
set_command() { # ATTEMPT PROCESS ARGS...
  command=()
  if [[ $gpus ]]; then command=(env "JAX_LOCAL_DEVICE_IDS=$2"); fi
  command+=("$PYTHON" -m dinov2_jax.main --coordinator="localhost:$((port + $1))"
    --num_processes="$count" --process_id="$2" "${@:3}")
}

start_all() { # ATTEMPT ARGS...
  local process
  pids=()
  set -m # each process leads a group with its loader workers
  for ((process = 0; process < count; process++)); do
    set_command "$1" "$process" "${@:2}"
    "${command[@]}" </dev/null &
    pids+=($!)
  done
  set +m
}

# shellcheck disable=SC2329 # called by the traps
pass_on() { # SIGNAL: to the processes only, which end their loader workers
  say "passing on SIG$1"
  stopping=$SECONDS
  if ((${#pids[@]})); then kill "-$1" "${pids[@]}" 2>/dev/null || true; fi
}

kill_all() {
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

# Waits for all; sets `code` to 0 or the weightiest code of those not killed here.
wait_for_all() {
  local running left pid status deadline='' killed=''
  code=0
  while ((${#pids[@]})); do
    sleep 0.2 || true # the terminal's signals reach it too
    running=$(jobs -pr) left=()
    running=" ${running//$'\n'/ } "
    for pid in "${pids[@]}"; do
      if [[ $running == *" $pid "* ]]; then
        left+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      if [[ $killed ]] && ((code)); then continue; fi
      if (($(weight "$status") > $(weight "$code"))); then
        code=$status deadline=$((SECONDS + $(patience "$code")))
      fi
    done
    pids=("${left[@]}")
    if [[ $stopping && ! $deadline ]]; then deadline=$((stopping + grace)); fi
    if [[ $deadline && ! $killed ]] && ((${#pids[@]} && SECONDS >= deadline)); then
      say "killing the other ${#pids[@]} of $count processes"
      kill_all
      killed=1
    fi
  done
}

# Ranks exit codes by how much they explain: errors that a restart cannot fix (2, 3),
# signals and lost machines, a requested restart (42), failures caused by others (75).
weight() { # CODE
  case $1 in
    0) echo 0 ;;
    2 | 3) echo 5 ;;
    42) echo 3 ;;
    75) echo 2 ;;
    *) if worth_a_restart "$1"; then echo 4; else echo 1; fi ;;
  esac
}

# Seconds that the other processes get after one has ended with this code. With 3 and 42
# all end together and have work to finish. Otherwise the others may be about to end for
# the same reason, or with a code that explains it.
patience() { # CODE
  case $1 in
    2) echo 0 ;;
    3 | 42) echo 30 ;;
    *) echo 2 ;;
  esac
}

if [[ $DRY_RUN ]]; then
  for ((process = 0; process < count; process++)); do
    set_command 0 "$process" "$@"
    run "${command[@]}"
  done
  exit
fi

pids=() stopping=
trap 'pass_on TERM' TERM HUP # HUP: the terminal was closed
trap 'pass_on INT' INT
trap kill_all EXIT

for ((attempt = 0; ; attempt++)); do
  start_all "$attempt" "$@"
  wait_for_all
  if ((code == 0)) || [[ $stopping ]] || ! worth_a_restart "$code"; then break; fi
  if ((attempt == restarts)); then
    say "exit code $code after $restarts restarts: giving up"
    break
  fi
  say "exit code $code: restart $((attempt + 1)) of at most $restarts"
done
exit "$code"
