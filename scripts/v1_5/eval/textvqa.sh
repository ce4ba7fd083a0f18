#!/usr/bin/env bash
# TextVQA: accuracy on the validation set.
# bash scripts/v1_5/eval/textvqa.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/textvqa
need_file "$data/TextVQA_0.5.1_val.json" "it holds the right answers"
ask model_vqa_loader "$data/answers/$ckpt.jsonl" \
  --question-file "$data/llava_textvqa_val_v051_ocr.jsonl" \
  --image-folder "$data/train_images"
run "$python" -m llava.eval.eval_textvqa \
  --annotation-file "$data/TextVQA_0.5.1_val.json" \
  --result-file "$data/answers/$ckpt.jsonl"
