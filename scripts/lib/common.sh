# shellcheck shell=bash
# What the scripts share: messages, where the environment is, and process settings. Sourced, from
# the repository root; only defines names.
# shellcheck disable=SC2034  # the colours are for those who source this file

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
  BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' YELLOW=$'\e[33m' PLAIN=$'\e[0m'
else
  BOLD='' GREEN='' RED='' YELLOW='' PLAIN=''
fi

say() { printf '%s\n' "$*"; }
heading() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
warn() { printf '%swarning:%s %s\n' "$YELLOW" "$PLAIN" "$*" >&2; }
die() {
  printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
  exit 2
}

# "3 min 07 s" from a number of seconds.
duration() {
  if (($1 >= 60)); then printf '%d min %02d s' $(($1 / 60)) $(($1 % 60)); else printf '%d s' "$1"; fi
}

num_cores() { nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2; }

# Settings that have to be in place before a Python process starts.
export_process_settings() {
  local cores
  cores=$(num_cores)
  # The quickstart's matrices are too small to feed more than a few threads.
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores < 8 ? cores : 8))}"
  # By default a thread that waits for the others spins, and takes the core that another program, or
  # one of these threads, could have: beside one busy program a training step took four times as long.
  export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-2000}"
  # The workers of a data loader are processes already.
  export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
  # glibc otherwise maps and zeroes every large temporary anew: a third of a training step on a CPU.
  export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}"
  export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
  export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-268435456}"
}

# End the script, with what to do, if a Python lacks the project's packages; a dry run needs none.
need_packages() {
  ((${dry_run:-0})) && return
  "$1" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' \
    torch transformers typer 2>/dev/null ||
    die "$1 lacks the packages of this project (torch, transformers, ...): make an environment" \
      "with: bash scripts/setup.sh, or name one that has them: PYTHON=/path/to/bin/python"
}

# The Python that --no-install uses: $PYTHON, the active environment, then the given folders.
find_python() {
  local venv python
  if [[ -n ${PYTHON:-} ]]; then
    command -v "$PYTHON" || die "PYTHON=$PYTHON is not a program"
    return
  fi
  for venv in "${VIRTUAL_ENV:-}" "$@"; do
    if [[ -n $venv && -x $venv/bin/python ]]; then
      printf '%s\n' "$venv/bin/python"
      return
    fi
  done
  python=$(command -v python3) || die "no python3 found: make an environment with: bash scripts/setup.sh"
  need_packages "$python"
  printf '%s\n' "$python"
}

# Put a Python's folder first on the PATH, so that `lrm`, `ruff` and the scripts under v1_5 find it.
use_python() {
  PATH="$(cd "$(dirname "$1")" && pwd):$PATH"
  export PATH
  # The environment may have been made by hand, without installing this repository into it.
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
}
