#!/usr/bin/env bash
# MM-Vet: answers, as a file for its evaluator.
# bash scripts/v1_5/eval/mmvet.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/mm-vet
ask model_vqa "$data/answers/$ckpt.jsonl" \
  --question-file "$data/llava-mm-vet.jsonl" \
  --image-folder "$data/images"
need_folder_for "$data/results/$ckpt.json"
run "$python" scripts/convert_mmvet_for_eval.py \
  --src "$data/answers/$ckpt.jsonl" \
  --dst "$data/results/$ckpt.json"
