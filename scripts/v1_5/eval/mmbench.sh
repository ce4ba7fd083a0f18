#!/usr/bin/env bash
# MMBench: answers of the dev set, as a file for the evaluation server.
# bash scripts/v1_5/eval/mmbench.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
split=mmbench_dev_20230712
data=$eval_dir/mmbench
ask model_vqa_mmbench "$data/answers/$split/$ckpt.jsonl" \
  --question-file "$data/$split.tsv" \
  --single-pred-prompt
run "$python" scripts/convert_mmbench_for_submission.py \
  --annotation-file "$data/$split.tsv" \
  --result-dir "$data/answers/$split" \
  --upload-dir "$data/answers_upload/$split" \
  --experiment "$ckpt"
