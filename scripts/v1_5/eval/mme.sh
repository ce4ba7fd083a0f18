#!/usr/bin/env bash
# MME: perception and cognition scores, as by its official tool.
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
need_file "$data/MME_Benchmark_release_version" "it holds pictures, questions and right answers"
ask model_vqa_loader "$data/answers/$ckpt.jsonl" \
  --question-file "$data/llava_mme.jsonl" \
  --image-folder "$data/MME_Benchmark_release_version"
run "$python" scripts/convert_answer_to_mme.py --experiment "$ckpt" --data-dir "$data"
run "$python" -m llava.eval.eval_mme --results_dir "$data/eval_tool/answers/$ckpt"
