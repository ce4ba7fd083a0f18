#!/usr/bin/env bash
# GQA: answers of the split testdev_balanced, scored by GQA's own eval.py.
# bash scripts/v1_5/eval/gqa.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
split=llava_gqa_testdev_balanced
data=$eval_dir/gqa
need_file "$data/data/eval/eval.py" "put GQA's eval.py and its questions below $data/data"
ask_on_all_gpus model_vqa_loader "$data/answers/$split/$ckpt" \
  --question-file "$data/$split.jsonl" \
  --image-folder "$data/data/images"
run "$python" scripts/convert_gqa_for_eval.py \
  --src "$data/answers/$split/$ckpt/merge.jsonl" \
  --dst "$data/data/testdev_balanced_predictions.json"
((dry_run)) || cd "$data/data"
run "$python" eval/eval.py --tier testdev_balanced
