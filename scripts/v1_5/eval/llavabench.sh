#!/usr/bin/env bash
# LLaVA-Bench (in the wild): answers, reviewed by GPT-4 (OPENAI_API_KEY).
# bash scripts/v1_5/eval/llavabench.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/llava-bench-in-the-wild
ask model_vqa "$data/answers/$ckpt.jsonl" \
  --question-file "$data/questions.jsonl" \
  --image-folder "$data/images"
run "$python" -m llava.eval.eval_gpt_review_bench \
  --question "$data/questions.jsonl" \
  --context "$data/context.jsonl" \
  --rule llava/eval/table/rule.json \
  --answer-list "$data/answers_gpt4.jsonl" "$data/answers/$ckpt.jsonl" \
  --output "$data/reviews/$ckpt.jsonl"
run "$python" -m llava.eval.summarize_gpt_review -f "$data/reviews/$ckpt.jsonl"
