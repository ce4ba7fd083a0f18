#!/usr/bin/env bash
# VQAv2: answers of the split test-dev, as a file for the evaluation server.
# bash scripts/v1_5/eval/vqav2.sh [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval vicuna_v1 "$@"
split=llava_vqav2_mscoco_test-dev2015
data=$eval_dir/vqav2
need_file "$data/llava_vqav2_mscoco_test2015.jsonl" "the server wants all questions of the test set"
ask_on_all_gpus model_vqa_loader "$data/answers/$split/$ckpt" \
  --question-file "$data/$split.jsonl" \
  --image-folder "$data/test2015"
run "$python" scripts/convert_vqav2_for_submission.py --dir "$data" --split "$split" --ckpt "$ckpt"
