#!/usr/bin/env bash
# ScienceQA: accuracies on the test set.
# bash scripts/v1_5/eval/sqa.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/scienceqa
need_file "$data/problems.json" "it holds the right answers"
need_file "$data/pid_splits.json" "it says which problems are the test set"
ask model_vqa_science "$data/answers/$ckpt.jsonl" \
  --question-file "$data/llava_test_CQM-A.json" \
  --image-folder "$data/images/test" \
  --single-pred-prompt
run "$python" -m llava.eval.eval_science_qa \
  --base-dir "$data" \
  --result-file "$data/answers/$ckpt.jsonl" \
  --output-file "$data/answers/${ckpt}_output.jsonl" \
  --output-result "$data/answers/${ckpt}_result.json"
