#!/usr/bin/env bash
# Trains with several processes on this machine.
#
#   launch/local.sh N [OPTIONS] -- --config=configs/vits.py --workdir=DIR ...
#
# N processes on the CPU (JAX_PLATFORMS=cpu) or, with --gpus, with one GPU each. All are
# ended when one fails; they are started again, and resume, when it ended with exit
# code 42 (saved, asks for it) or 75 (a machine failed), or was ended by a signal (128
# and above, not Ctrl-C).
# SIGTERM and Ctrl-C are passed on. The exit code is that of the first that failed.
#
#   --gpus            process I sees GPU I and no other
#   --flags NAME      a profile of launch/flags (default: none)
#   --restarts COUNT  at most so many (default: 10)
#   --grace SECONDS   after SIGTERM, before the rest is killed (default: 180)
#   --port PORT       of process 0 (default: by this process's number)
#   --dry-run         print the commands
#   --help            this
#
# PYTHON names another interpreter than .venv/bin/python.
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

# Sets the array `command`. Each attempt has a port: the last one may still be closing.
set_command() { # ATTEMPT PROCESS ARGS...
  command=()
  if [[ $gpus ]]; then command=(env "JAX_LOCAL_DEVICE_IDS=$2"); fi
  command+=("$PYTHON" -m dinov2_jax.main --coordinator="localhost:$((port + $1))"
    --num_processes="$count" --process_id="$2" "${@:3}")
}

start_all() { # ATTEMPT ARGS...
  local process
  pids=()
  set -m # each leads a process group, of itself and its loader workers
  for ((process = 0; process < count; process++)); do
    set_command "$1" "$process" "${@:2}"
    "${command[@]}" </dev/null &
    pids+=($!)
  done
  set +m
}

# shellcheck disable=SC2329 # called by the traps
pass_on() { # SIGNAL: to the processes alone, whose loader workers they end
  say "passing on SIG$1"
  stopping=$SECONDS
  if ((${#pids[@]})); then kill "-$1" "${pids[@]}" 2>/dev/null || true; fi
}

kill_all() {
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

# Waits for all; `code` is 0 or that of the first that failed.
wait_for_all() {
  local running left pid status first deadline=
  code=0
  while ((${#pids[@]})); do
    sleep 0.2
    running=" $(jobs -pr | tr '\n' ' ') " left=() first=$code
    for pid in "${pids[@]}"; do
      if [[ $running == *" $pid "* ]]; then
        left+=("$pid")
        continue
      fi
      status=0
      wait "$pid" || status=$?
      if ((first == 0)); then code=$(weightier "$code" "$status"); fi
    done
    pids=("${left[@]}")
    if ((first == 0 && code != 0)); then
      # With 3 and 42 all end at once, and have things to finish.
      deadline=$((SECONDS + (code == 3 || code == 42 ? 30 : 0)))
    elif [[ $stopping && ! $deadline ]]; then
      deadline=$((stopping + grace))
    fi
    if [[ $deadline ]] && ((${#pids[@]} && SECONDS >= deadline)); then
      say "killing the other ${#pids[@]} of $count processes"
      kill_all
    fi
  done
}

# Of two exit codes at the same time: what no restart can help, then a signal, which may
# have made the other fail.
weightier() { # CODE CODE
  if (($2 == 0)); then
    echo "$1"
  elif (($1 == 0)); then
    echo "$2"
  elif (($1 == 2 || $1 == 3)) || { worth_a_restart "$1" && (($2 != 2 && $2 != 3)); }; then
    echo "$1"
  else
    echo "$2"
  fi
}

if [[ $DRY_RUN ]]; then
  for ((process = 0; process < count; process++)); do
    set_command 0 "$process" "$@"
    run "${command[@]}"
  done
  exit
fi

pids=() stopping=
trap 'pass_on TERM' TERM
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
