#!/usr/bin/env bash
# ScienceQA on eight GPUs: bash scripts/sqa_eval_batch.sh [--dry-run], then sqa_eval_gather.sh
#
# Variables: CHUNKS (8) is the number of GPUs; the others are in scripts/lib/eval.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval llava_v1 "$@"
data=$eval_dir/scienceqa
devices=$(seq -s, 0 $((${CHUNKS:-8} - 1)))
CUDA_VISIBLE_DEVICES=$devices ask_on_all_gpus model_vqa_science "$data/answers/$ckpt" \
  --question-file "$data/llava_test_QCM-LEA.json" \
  --image-folder "$data/images/test"
