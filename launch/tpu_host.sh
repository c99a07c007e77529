#!/usr/bin/env bash
# Runs on a TPU host; launch/tpu_mig.sh and launch/tpu_vm.sh call it over ssh.
#
#   launch/tpu_host.sh install PYTHON                 set up .venv with jax[tpu]
#   launch/tpu_host.sh start PROFILE ARGS...          train; survives the end of ssh
#   launch/tpu_host.sh status                         print running, ended CODE or idle
#   launch/tpu_host.sh stop                           save, then kill what is left
#   launch/tpu_host.sh logs                           follow the log
#
# PROFILE is one of launch/flags or "". The log is run/log in this repository.
#
#   --dry-run        print the commands
#   --help           show this help
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

if [[ ${1-} == --dry-run ]]; then DRY_RUN=1; shift; fi
verb=${1---help}
GRACE=180 # seconds for a save, as in the other launchers
shift || true
cd -- "$REPOSITORY"

install() { # PYTHON
  run "$1" -m venv .venv
  run .venv/bin/python -m pip install -q -r requirements.txt "jax[tpu]"
}

# Runs the training and writes its exit code to run/exit, after `start` has ended.
attend() {
  local code=0
  "$@" || code=$?
  echo "$code" >run/exit.new
  mv run/exit.new run/exit
}

start() { # PROFILE ARGS...
  apply_profile "$1"
  find_python
  local command=("$PYTHON" -m dinov2_jax.main "${@:2}")
  if [[ $DRY_RUN ]]; then run "${command[@]}"; return; fi
  stop
  mkdir -p run
  rm -f run/exit
  set -m # a process group, so that `stop` ends the loader workers too
  nohup bash -c "$(declare -f attend); attend \"\$@\"" attend "${command[@]}" \
    </dev/null >>run/log 2>&1 &
  echo $! >run/pid
  set +m
}

running() {
  [[ -f run/pid ]] && kill -0 -- "-$(cat run/pid)" 2>/dev/null
}

status() {
  if [[ -f run/exit ]]; then
    echo "ended $(cat run/exit)"
  elif running; then
    echo running
  elif [[ -f run/pid ]]; then
    echo "ended 137" # the whole group was killed
  else
    echo idle
  fi
}

# Sends SIGTERM to the training only, which saves and ends its loader workers.
stop() {
  if running; then
    local waited=0
    run pkill -TERM -P "$(cat run/pid)" || true
    while [[ ! $DRY_RUN && ! -f run/exit ]] && ((waited++ < 5 * GRACE)); do
      sleep 0.2
    done
    if running; then run kill -KILL -- "-$(cat run/pid)"; fi
  fi
  if [[ ! $DRY_RUN ]]; then rm -f run/pid run/exit; fi
}

case $verb in
  --help | -h) usage "${BASH_SOURCE[0]}" ;;
  install | start | status | stop) "$verb" "$@" ;;
  logs) run tail -n 100 -F run/log ;;
  *) fail "unknown verb $verb: see --help" ;;
esac
