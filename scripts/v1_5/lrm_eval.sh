#!/usr/bin/env bash
# Measure a model in ten languages: bash scripts/v1_5/lrm_eval.sh [flags of `lrm eval`]
#
# Variables: MODEL_PATH (runs/$PRESET), MODEL_BASE (of a LoRA or projector checkpoint), LANGUAGES
# (all), BATCH_SIZE (64), OUTPUT_DIR ($MODEL_PATH/eval). Flags on the command line come last and
# win. --dry-run prints the command and runs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

dry_run=0
flags=()
for flag; do
  case $flag in
    --dry-run) dry_run=1 ;;
    *) flags+=("$flag") ;;
  esac
done

python=$(find_python .venv)
command=("$python" -m lrm_ext.cli eval
  --model "${MODEL_PATH:-runs/${PRESET:-mini}}" --batch-size "${BATCH_SIZE:-64}")
[[ -z ${MODEL_BASE:-} ]] || command+=(--model-base "$MODEL_BASE")
[[ -z ${LANGUAGES:-} ]] || command+=(--languages "$LANGUAGES")
[[ -z ${OUTPUT_DIR:-} ]] || command+=(--out "$OUTPUT_DIR")
command+=(${flags[@]+"${flags[@]}"})

if ((dry_run)); then
  printf '%q ' "${command[@]}"
  printf '\n'
  exit
fi
need_packages "$python"
export_process_settings
use_python "$python"
exec "${command[@]}"
