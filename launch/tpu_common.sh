# Common parts of launch/tpu_mig.sh and launch/tpu_vm.sh. Source it after common.sh.
# shellcheck shell=bash disable=SC2034 # some variables are used only there
#
# The two scripts define, for the slice $name:
#   create, delete, describe
#   state             prints READY (all hosts are up), NONE (nothing was created),
#                     GONE (the hosts will not come back), UNREACHABLE (gcloud failed,
#                     by this machine's network, say), or a word for a wait
#   find_hosts        sets `hosts` to the hosts' names
#   on_host I CMD     runs a command on host I by ssh; I may be "all"
#   copy_to_all FILE  copies a file to the home folder of every host
#   cluster_flags I   prints the cluster flags of process I, "" if jax finds the cluster

FOLDER=dinov2_jax # in the home folder of each host
# Seconds after which `watch` no longer takes failed installs for hosts that just start.
patience=${TPU_PATIENCE-300}
name=${TPU_NAME-} zone=${TPU_ZONE-} project=${CLOUDSDK_CORE_PROJECT-} spot='' flags=''
restarts=50 poll=60 python=python3.11 verb='' arguments=() hosts=()

# Sets a variable for each option, `verb`, and `arguments` to those after --.
parse() { # "--OPTION ..." ARGS...: first the script's own options
  local own=" --name --zone --project --flags --restarts --poll --python $1 "
  shift
  while (($#)); do
    case $1 in
      --help | -h) usage "$0"; exit ;;
      --dry-run) DRY_RUN=1 ;;
      --spot) spot=1 ;;
      --) arguments=("${@:2}"); break ;;
      --*)
        [[ $own == *" $1 "* ]] || fail "unknown option $1: see --help"
        set_option "${1#--}" "$1" "${2-}"
        shift
        ;;
      *)
        [[ -z $verb ]] || fail "unknown argument $1: those of the run come after --"
        verb=$1
        ;;
    esac
    shift
  done
  need verb "what is to be done? see --help"
  need name "--name or TPU_NAME is missing: see --help"
  need zone "--zone or TPU_ZONE is missing: see --help"
  need_number --restarts "$restarts"
  need_number --poll "$poll"
  profile "$flags" >/dev/null
  where=(--zone="$zone")
  if [[ $project ]]; then where+=(--project="$project"); fi
}

# Runs a query. A dry run prints the command and answers $1 instead.
ask() { # ANSWER COMMAND...
  if [[ $DRY_RUN ]]; then
    quoted "${@:2}" >&2
    printf '%s\n' "$1"
  else
    "${@:2}"
  fi
}

# Runs a query; answers NONE if there is no such thing, UNREACHABLE if it failed.
query() { # ANSWER COMMAND...
  local answer problem
  problem=$(mktemp)
  if answer=$(ask "$@" 2>"$problem"); then
    printf '%s\n' "$answer"
  elif grep -qiE 'NOT_FOUND|not found' "$problem"; then
    echo NONE
  else
    echo UNREACHABLE
  fi
  cat -- "$problem" >&2
  rm -f -- "$problem"
}

host_command() { # VERB ARGS...: print the call of tpu_host.sh, quoted for ssh
  quoted "$FOLDER/launch/tpu_host.sh" "$@"
}

wait_until_ready() {
  local now before=
  while true; do
    now=$(state)
    case $now in
      READY) break ;;
      NONE | GONE) fail "there is no $name: it was taken away, or never created" ;;
    esac
    if [[ $now != "$before" ]]; then say "$name: $now"; fi
    before=$now
    sleep "$poll"
  done
  find_hosts
}

need_checkout() {
  git -C "$REPOSITORY" ls-files --error-unmatch -- launch/tpu_host.sh \
    >/dev/null 2>&1 ||
    fail "$REPOSITORY: the hosts get the files that git tracks, and this is no git\
 checkout of dinov2_jax: clone the repository and use the launch folder in it"
}

# Prints the files that git tracks and that are in the work tree, each ended by a 0.
tracked_files() {
  local file
  git -C "$REPOSITORY" ls-files -z | while IFS= read -rd '' file; do
    if [[ -e $REPOSITORY/$file || -L $REPOSITORY/$file ]]; then printf '%s\0' "$file"; fi
  done
}

# Installs every file that git tracks, as it is in the work tree. It is called where
# `set -e` does not hold.
install() {
  local archive=$FOLDER.tar.gz folder code=0
  folder=$(mktemp -d) || return
  if [[ ! $DRY_RUN ]]; then
    tracked_files |
      tar -C "$REPOSITORY" --null --files-from=- -czf "$folder/$archive" || code=$?
  fi
  if ((code == 0)); then
    (cd -- "$folder" && copy_to_all "$archive") || code=$?
  fi
  rm -r -- "$folder"
  if ((code)); then return "$code"; fi
  on_host all "mkdir -p $FOLDER && tar -xzf $archive -C $FOLDER && $(
    host_command install "$python"
  )"
}

start() {
  local i extra tell=() all=("${arguments[@]}" "--config.mesh.processes=${#hosts[@]}")
  extra=$(cluster_flags 0)
  if [[ -z $extra ]]; then
    on_host all "$(host_command start "$flags" "${all[@]}")"
    return
  fi
  for i in "${!hosts[@]}"; do
    read -ra tell <<<"$(cluster_flags "$i")"
    on_host "$i" "$(host_command start "$flags" "${all[@]}" "${tell[@]}")" ||
      return
  done
}

# Waits for the training; returns its exit code, 255 if hosts were lost.
wait_for_end() {
  local answers code now failures=0
  if [[ $DRY_RUN ]]; then
    on_host all "$(host_command status)"
    return
  fi
  while true; do
    sleep "$poll"
    if answers=$(on_host all "$(host_command status)"); then
      failures=0
    else
      failures=$((failures + 1)) # this machine's network or the hosts failed
      ((failures >= 3)) || continue
      now=$(state)
      # Beside a host that was replaced, the others end sooner or later.
      if [[ $now != UNREACHABLE && $now != READY ]]; then return 255; fi
      if [[ $now == READY && $answers == *ended* ]]; then return 255; fi
      continue
    fi
    code=$(verdict "$answers")
    case $code in
      running) continue ;;
      0) return 0 ;;
      *)
        say "a host ended with exit code $code: ending the others"
        on_host all "$(host_command stop)" || true
        return "$code"
        ;;
    esac
  done
}

# Prints "running", 0 if all hosts ended well, an exit code that a restart cannot fix
# (2, 3), or the largest one.
verdict() { # LINES: the status of each host
  awk '
    $1 == "running" { running = 1 }
    $1 == "ended" && $2 > 0 {
      if ($2 == 2 || $2 == 3) final = $2
      if ($2 > worst) worst = $2
    }
    $1 == "idle" { worst = worst ? worst : 255 }
    END { print final ? final : worst ? worst : running ? "running" : 0 }
  ' <<<"$1"
}

watch() {
  local attempt code now failed_starts=0 ready=0
  for ((attempt = 0; ; attempt++)); do
    now=$(state)
    while [[ $now == UNREACHABLE ]]; do
      say "gcloud does not answer: asking again in $poll s"
      sleep "$poll"
      now=$(state)
    done
    if [[ $now == GONE ]]; then delete; fi
    if [[ $now == GONE || $now == NONE ]]; then create; fi
    wait_until_ready
    if ((failed_starts == 0)); then ready=$SECONDS; fi
    code=0
    # A host may be preempted at any point.
    { install && start; } || code=255
    if ((code == 0)); then
      failed_starts=0
      wait_for_end || code=$?
    elif [[ $(state) == READY ]]; then # no host was lost
      failed_starts=$((failed_starts + 1))
      # New hosts take some time until ssh answers.
      if ((failed_starts >= 3 && SECONDS - ready >= patience)); then
        say "the hosts are up, but install or start failed $failed_starts times in a row: giving up;\
 repair what is reported above, then run the same command"
        return 1
      fi
      sleep "$poll"
    else
      failed_starts=0
    fi
    if ! worth_a_restart "$code"; then return "$code"; fi
    if ((attempt == restarts)); then
      say "exit code $code after $restarts restarts: giving up"
      return "$code"
    fi
    say "exit code $code: restart $((attempt + 1)) of at most $restarts"
  done
}

do_verb() {
  case $verb in
    create) create; wait_until_ready ;;
    install) need_checkout; find_hosts; install ;;
    run) find_hosts; start; wait_for_end ;;
    watch | resume) need_checkout; watch ;;
    logs) find_hosts; on_host 0 "$(host_command logs)" ;;
    stop) find_hosts; on_host all "$(host_command stop)" ;;
    status) describe; find_hosts; on_host all "$(host_command status)" ;;
    delete) delete ;;
    *) fail "unknown verb $verb: see --help" ;;
  esac
}
