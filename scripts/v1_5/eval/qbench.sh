#!/usr/bin/env bash
# Q-Bench: answers of the split dev or test.
# bash scripts/v1_5/eval/qbench.sh dev|test [--dry-run] [--batch-size 16] [--fresh]
#
# Variables: see scripts/lib/eval.sh; the data is laid out as docs/llava-eval.md says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

[[ ${1:-} == dev || ${1:-} == test ]] || die "expected dev or test, found: ${1:-nothing}"
split=$1
shift
set_up_eval llava_v1 "$@"
data=$eval_dir/qbench
ask model_vqa_qbench "$data/llvisionqa_${split}_answers.jsonl" \
  --questions-file "$data/llvisionqa_$split.json" \
  --image-folder "$data/images_llvisionqa" \
  --lang en
