#!/usr/bin/env bash
# Stage 1, the projector learns alone: bash scripts/v1_5/lrm_pretrain.sh [--dry-run] [flags]
#
# Variables: PRESET (mini; see presets/), MODEL_NAME_OR_PATH, VISION_TOWER, DATA_PATH (a corpus
# folder or a LLaVA JSON file), MIXTURE (mixtures/pretrain.toml), LANGUAGES (hr,sw: besides English
# and in place of the mixture's; all: every one of the corpus), IMAGE_FOLDER, OUTPUT_DIR
# (runs/$PRESET-pretrain), NUM_GPUS (all; 0 is the CPU), DEEPSPEED (a configuration, or none),
# REPORT_TO (none); NNODES NODE_RANK MASTER_ADDR MASTER_PORT for several machines. Any flag of LLaVA
# on the command line wins. The same command goes on where a run that was stopped ended.
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
set_flags_of_stage pretrain "${OUTPUT_DIR:-runs/$preset-pretrain}"
set_flags \
  --tune_mm_mlp_adapter True \
  --stage_name pre-training
set_flags_of_user "$@"
set_batch_flags pretrain "$@"
prepare_inputs
launch lrm_ext.training.train "$gpus"
