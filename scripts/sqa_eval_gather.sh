#!/usr/bin/env bash
# Score what sqa_eval_batch.sh has answered: bash scripts/sqa_eval_gather.sh [--dry-run]
#
# Variables: those of scripts/lib/eval.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/eval.sh
. scripts/lib/eval.sh

set_up_eval llava_v1 "$@"
data=$eval_dir/scienceqa
need_file "$data/answers/$ckpt/merge.jsonl" "run scripts/sqa_eval_batch.sh first"
run "$python" -m llava.eval.eval_science_qa \
  --base-dir "$data" \
  --result-file "$data/answers/$ckpt/merge.jsonl" \
  --output-file "$data/answers/$ckpt/output.json" \
  --output-result "$data/answers/$ckpt/result.json"
