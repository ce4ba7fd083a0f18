#!/usr/bin/env bash
# POPE: does the model see objects that are not there?
# bash scripts/v1_5/eval/pope.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/pope
need_file "$data/coco" "it holds coco_pope_<category>.json"
ask model_vqa_loader "$data/answers/$ckpt.jsonl" \
  --question-file "$data/llava_pope_test.jsonl" \
  --image-folder "$data/val2014"
run "$python" -m llava.eval.eval_pope \
  --annotation-dir "$data/coco" \
  --question-file "$data/llava_pope_test.jsonl" \
  --result-file "$data/answers/$ckpt.jsonl"
