#!/usr/bin/env bash
# Stage 2, projector and language model learn: bash scripts/v1_5/lrm_finetune.sh [--dry-run] [flags]
#
# Variables as in lrm_pretrain.sh; OUTPUT_DIR is runs/$PRESET. The projector is that of
# MODEL_NAME_OR_PATH if this is a trained model (docs/languages.md), else it comes from
# runs/$PRESET-pretrain; --pretrain_mm_mlp_adapter names another. Any flag of LLaVA on the command line
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
set_flags --stage_name fine-tuning
set_flags_of_user "$@"
set_batch_flags finetune "$@"
set_default_projector "runs/$preset-pretrain/mm_projector.bin"
prepare_inputs
launch lrm_ext.training.train "$gpus"
