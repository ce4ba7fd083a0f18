#!/usr/bin/env bash
# MME: scored by the tools that come with its data.
# bash scripts/v1_5/eval/mme.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
data=$eval_dir/MME
need_file "$data/convert_answer_to_mme.py" "it comes with LLaVA's eval.zip"
need_file "$data/eval_tool/calculation.py" "it comes with MME"
ask model_vqa_loader "$data/answers/$ckpt.jsonl" \
  --question-file "$data/llava_mme.jsonl" \
  --image-folder "$data/MME_Benchmark_release_version"
((dry_run)) || cd "$data"
run "$python" convert_answer_to_mme.py --experiment "$ckpt"
((dry_run)) || cd eval_tool
run "$python" calculation.py --results_dir "answers/$ckpt"
