# Shell functions for the launchers. Source it; do not run it.
# shellcheck shell=bash

# Otherwise bash 5.2 replaces an & in a replacement string by the matched text.
shopt -u patsub_replacement 2>/dev/null || true

LAUNCH=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
REPOSITORY=$(dirname -- "$LAUNCH")

# Prints the help of a script: the comment below its #! line.
usage() {
  sed -n '2,/^[^#]/{/^#/!q;/^#SBATCH/d;s/^# \{0,1\}//;p}' "$1"
}

fail() { # MESSAGE: report wrong usage and exit
  echo "error: $1" >&2
  exit 2
}

say() {
  echo "$(basename -- "$0"): $*" >&2
}

# Sets the variable $1 to $3, the value of option $2.
set_option() {
  [[ -n ${3-} && ${3-} != --* ]] || fail "$2 needs a value: see --help"
  printf -v "$1" %s "$3"
}

need_number() { # OPTION VALUE
  [[ $2 =~ ^[0-9]+$ ]] || fail "$1=$2: a whole number is needed"
}

need() { # VARIABLE MESSAGE: the variable must not be empty
  [[ -n ${!1-} ]] || fail "$2"
}

# Prints a command with shell quoting.
quoted() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s\n' "${line# }"
}

# Runs a command, or prints it with --dry-run.
DRY_RUN=
run() {
  if [[ $DRY_RUN ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Whether to restart after this exit code: the run saved and asks for it (42), a machine
# failed (75), or a signal or a lost machine ended it; but not Ctrl-C (130).
worth_a_restart() {
  (($1 == 42 || $1 == 75 || ($1 >= 128 && $1 <= 255 && $1 != 130)))
}

# Prints the variables of a flag profile as lines NAME=VALUE; nothing for an empty name.
# Several lines with one name are joined into a list of flags.
profile() { # PROFILE
  [[ -n $1 ]] || return 0
  local file=$LAUNCH/flags/$1.env
  if [[ ! -f $file ]]; then
    local known
    known=$(cd -- "$LAUNCH/flags" && printf ', %s' *.env)
    known=${known//.env/}
    fail "--flags $1: there is no such profile: use one of ${known#, }"
  fi
  awk -F= '
    /^[A-Z]/ {
      name = $1; value = substr($0, length(name) + 2)
      if (name in all) { all[name] = all[name] " " value }
      else { all[name] = value; names[++count] = name }
    }
    END { for (i = 1; i <= count; i++) print names[i] "=" all[names[i]] }
  ' "$file"
}

# Exports a flag profile. Values that are already in the environment win.
apply_profile() { # PROFILE
  local lines line name value
  lines=$(profile "$1") || exit
  while IFS= read -r line; do
    [[ -n $line ]] || continue
    name=${line%%=*} value=${line#*=}
    case $name in
      XLA_FLAGS | LIBTPU_INIT_ARGS) value+=${!name:+ ${!name}} ;;
      *) value=${!name:-$value} ;;
    esac
    export "$name=$value"
    say "--flags $1: $name=$value"
  done <<<"$lines"
}

# Sets PYTHON, if it is not set, to that of the environment from `make`, or python3.
find_python() {
  if [[ -z ${PYTHON-} ]]; then
    PYTHON=$REPOSITORY/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
}
