#!/usr/bin/env bash
# Make the Python environment: bash scripts/setup.sh [--venv DIR] [--extras LIST]
#
# Uses uv where it is installed, else venv and pip. torch comes first, so that a machine without an
# NVIDIA GPU gets the CPU build and not gigabytes of CUDA libraries. Run again, it returns at once
# while pyproject.toml and constraints.txt are unchanged.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

CPU_INDEX=https://download.pytorch.org/whl/cpu

usage() {
  cat <<'TEXT'
usage: bash scripts/setup.sh [--venv DIR] [--extras LIST]

  --venv DIR      the environment's folder (.venv)
  --extras LIST   extras of pyproject.toml, with commas: train,serve,translate,figures,gpu,dev (serve);
                  train: DeepSpeed and LoRA, as presets for real models use them; gpu: 4-bit weights

Variables: PYTHON=python3.12 chooses the interpreter; TORCH_BUILD=cpu or gpu overrules the search
for an NVIDIA GPU. pip's own settings (index-url, extra-index-url, find-links) are respected.
TEXT
}

venv=.venv
extras=serve
while (($#)); do
  case $1 in
    --venv) venv=${2:?--venv needs a folder}; shift 2 ;;
    --extras) extras=${2:?--extras needs a list}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
done

python_is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

# Print the interpreter to build on; older systems carry a newer one under its full name.
choose_python() {
  local name
  if [[ -n ${PYTHON:-} ]]; then
    python_is_new_enough "$PYTHON" || die "PYTHON=$PYTHON is no Python >= 3.10"
    printf '%s\n' "$PYTHON"
    return
  fi
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$name" >/dev/null && python_is_new_enough "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  die "Python >= 3.10 is needed; found $(python3 --version 2>&1 || echo none)." \
    "Install one (apt install python3 python3-venv) or uv (https://docs.astral.sh/uv)."
}

make_environment() {
  local python
  # Without pip it is what an interrupted run left behind.
  if [[ -x $venv/bin/python ]] && python_is_new_enough "$venv/bin/python" &&
    "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "Environment $venv is there; bringing it up to date."
    return
  fi
  if command -v uv >/dev/null; then
    say "Making $venv with $(uv --version)."
    uv venv --quiet --clear --seed --python "${PYTHON:->=3.10}" "$venv"
    return
  fi
  python=$(choose_python)
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    die "$("$python" --version) has no venv module. On Debian and Ubuntu:" \
      "sudo apt install python3-venv"
  fi
  say "Making $venv with $("$python" --version)."
  "$python" -m venv --clear "$venv"
}

# One of pip's settings, from the environment or its files; nothing where pip has none.
pip_setting() {
  local variable
  variable=PIP_$(tr 'a-z-' 'A-Z_' <<<"$1")
  if [[ -n ${!variable:-} ]]; then
    printf '%s\n' "${!variable}"
  else
    python3 -m pip config get "global.$1" 2>/dev/null || true
  fi
}

# uv reads none of pip's settings, so a mirror or a folder of wheels would be lost.
export_pip_settings_for_uv() {
  local value
  value=$(pip_setting index-url)
  [[ -z $value ]] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$value}"
  value=$(pip_setting extra-index-url)
  [[ -z $value ]] || export UV_EXTRA_INDEX_URL="${UV_EXTRA_INDEX_URL:-$value}"
  value=$(pip_setting find-links)
  # pip separates by white space, uv by commas
  [[ -z $value ]] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(tr -s '[:space:]' ',' <<<"$value" | sed 's/,$//')}"
  value=$(pip_setting cert)
  [[ -z $value ]] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$value}"
  # As pip does: the best version of all indexes, not whatever the first one has.
  export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
}

# In a log, pip's hundred lines say nothing; on a terminal they show that something is going on.
install() {
  local quiet=()
  if command -v uv >/dev/null; then
    [[ -t 1 ]] || quiet=(--quiet)
    uv pip install --python "$venv/bin/python" ${quiet[@]+"${quiet[@]}"} \
      --constraint constraints.txt "$@"
  else
    [[ -t 1 ]] || quiet=(--quiet --quiet)
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-input \
      ${quiet[@]+"${quiet[@]}"} --constraint constraints.txt "$@"
  fi
}

wants_gpu() {
  case ${TORCH_BUILD:-auto} in
    gpu) return 0 ;;
    cpu) return 1 ;;
    auto) [[ $(nvidia-smi -L 2>/dev/null || true) == GPU* ]] ;;
    *) die "TORCH_BUILD=$TORCH_BUILD is unknown; choose cpu or gpu" ;;
  esac
}

cpu_index_answers() {
  "$venv/bin/python" - "$CPU_INDEX/torch/" 2>/dev/null <<'PY'
import sys
import urllib.request

urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=3)
PY
}

# torch first and alone: what is installed afterwards then finds its need of torch fulfilled.
install_torch() {
  local version
  version=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
  [[ -n $version ]] || die "constraints.txt names no torch version"
  if "$venv/bin/python" -W ignore -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$version')" \
    2>/dev/null; then
    say "torch $version is installed."
  elif wants_gpu; then
    say "NVIDIA GPU: installing torch $version with CUDA."
    install "torch==$version"
  elif [[ $(uname -s) != Linux ]]; then
    install "torch==$version"
  elif cpu_index_answers; then
    say "No NVIDIA GPU: installing the CPU build of torch $version from $CPU_INDEX."
    install --extra-index-url "$CPU_INDEX" "torch==$version+cpu"
  elif install "torch==$version+cpu" >"$venv/torch.log" 2>&1; then
    say "No NVIDIA GPU: installed the CPU build of torch $version from a configured index or folder."
  else
    warn "$CPU_INDEX does not answer and no other index has the CPU build;" \
      "taking torch $version as it comes, perhaps with gigabytes of CUDA libraries."
    install "torch==$version"
  fi
  if ! wants_gpu &&
    ! "$venv/bin/python" -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
    warn "this torch is a CUDA build, and no NVIDIA GPU was found. It works, but is large." \
      "For the CPU build: rm -r $venv, and run again where $CPU_INDEX answers."
  fi
}

# What the environment was made from; it differs when the clone is moved, too.
fingerprint() { { cat pyproject.toml constraints.txt; pwd; } | cksum; }

# The extras that the stamp names, or nothing where it belongs to other requirements.
stamped_extras() {
  local stamp="$venv/.lrm-setup"
  [[ -x $venv/bin/python && -f $stamp ]] || return 0
  [[ $(sed -n 1p "$stamp") == "$(fingerprint)" ]] || return 0
  sed -n 2p "$stamp"
}

have=$(stamped_extras)
missing=()
IFS=, read -ra wanted <<<"$extras"
for extra in "${wanted[@]}"; do
  [[ ",$have," == *",$extra,"* ]] || missing+=("$extra")
done
if ((${#missing[@]} == 0)); then
  say "Environment $venv is up to date."
  exit 0
fi

SECONDS=0
if command -v uv >/dev/null; then export_pip_settings_for_uv; fi
make_environment
install_torch
say "Installing the repository with $extras."
install --editable ".[$extras]"
printf '%s\n%s\n' "$(fingerprint)" "$extras${have:+,$have}" >"$venv/.lrm-setup"
say "Environment $venv is ready after $(duration "$SECONDS")."
