#!/usr/bin/env bash
# VizWiz: answers of the test set, as a file for the evaluation server.
# bash scripts/v1_5/eval/vizwiz.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/vizwiz
ask model_vqa_loader "$data/answers/$ckpt.jsonl" \
  --question-file "$data/llava_test.jsonl" \
  --image-folder "$data/test"
run "$python" scripts/convert_vizwiz_for_submission.py \
  --annotation-file "$data/llava_test.jsonl" \
  --result-file "$data/answers/$ckpt.jsonl" \
  --result-upload-file "$data/answers_upload/$ckpt.json"
