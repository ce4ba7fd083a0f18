#!/usr/bin/env bash
# Stage 2, projector and language model learn: bash scripts/v1_5/lrm_finetune.sh [--dry-run] [flags]
#
# Variables as in lrm_pretrain.sh; OUTPUT_DIR is runs/$PRESET. The projector comes from
# runs/$PRESET-pretrain, or from --pretrain_mm_mlp_adapter. Any flag of LLaVA on the command line
# wins. The same command goes on where a run that was stopped ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/launch.sh
. scripts/lib/launch.sh
# shellcheck source=scripts/lib/lrm_train.sh
. scripts/lib/lrm_train.sh

preset=${PRESET:-mini}
load_preset "$preset"
set_flags_of_stage finetune "${OUTPUT_DIR:-runs/$preset}"
set_flags \
  --pretrain_mm_mlp_adapter "runs/$preset-pretrain/mm_projector.bin" \
  --stage_name fine-tuning
set_flags_of_user "$@"
prepare_inputs
launch lrm_ext.training.train "$gpus"
