#!/usr/bin/env bash
# All checks: bash scripts/test.sh [--no-install] [arguments of pytest]
#
# Makes a fresh environment, then runs ruff, mypy, shellcheck and pytest. Runs all of them, sums up
# at the end, and fails if one failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

venv=.venv-test
do_install=1
case ${1:-} in
  --no-install) do_install=0; shift ;;
  -h | --help)
    say "usage: bash scripts/test.sh [--no-install] [arguments of pytest]"
    say "  --no-install   use \$PYTHON, the active environment, $venv or .venv, in this order"
    exit 0
    ;;
esac

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # two tests run at a time
export TOKENIZERS_PARALLELISM=false
SECONDS=0
if ((do_install)); then
  rm -rf -- "$venv"
  bash scripts/setup.sh --venv "$venv" --extras train,serve,translate,google,deepl,excel,figures,dev
  python=$venv/bin/python
else
  python=$(find_python "$venv" .venv)
  say "Using $python."
fi
use_python "$python"

results=()
failed=0
check() {
  local name=$1 start=$SECONDS
  shift
  heading "$name"
  if "$@"; then
    results+=("${GREEN}passed${PLAIN}  $name ($(duration $((SECONDS - start))))")
  else
    results+=("${RED}FAILED${PLAIN}  $name ($(duration $((SECONDS - start))))")
    failed=1
  fi
}

# shellcheck disable=SC2317,SC2329  # called through check
check_shell() {
  find scripts .ci -type f \( -name '*.sh' -o -name '*.sbatch' -o -path .ci/run \) -print0 |
    xargs -0 shellcheck --external-sources
}

check "ruff check" "$python" -m ruff check .
check "ruff format" "$python" -m ruff format --check .
check "mypy" "$python" -m mypy
check "shellcheck" check_shell
check "pytest" "$python" -m pytest -n 2 --dist loadfile "$@"

heading "Summary after $(duration "$SECONDS")"
printf '  %s\n' "${results[@]}"
exit "$failed"
