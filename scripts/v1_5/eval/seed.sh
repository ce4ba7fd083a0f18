#!/usr/bin/env bash
# SEED-Bench: accuracies, and a file for the leaderboard.
# bash scripts/v1_5/eval/seed.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/seed_bench
need_file "$data/SEED-Bench.json" "it holds the right answers"
ask_on_all_gpus model_vqa_loader "$data/answers/$ckpt" \
  --question-file "$data/llava-seed-bench.jsonl" \
  --image-folder "$data"
run "$python" scripts/convert_seed_for_submission.py \
  --annotation-file "$data/SEED-Bench.json" \
  --result-file "$data/answers/$ckpt/merge.jsonl" \
  --result-upload-file "$data/answers_upload/$ckpt.jsonl"
