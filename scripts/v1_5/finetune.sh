#!/usr/bin/env bash
# LLaVA v1.5, projector and language model learn: bash scripts/v1_5/finetune.sh [--dry-run] [flags]
#
# The flags are LLaVA v1.5's; those on the command line win. Variables: MODEL_NAME_OR_PATH,
# VISION_TOWER, DATA_PATH, IMAGE_FOLDER, OUTPUT_DIR, NUM_GPUS (all; 0 is the CPU), DEEPSPEED (a
# configuration, or none), REPORT_TO (wandb); NNODES NODE_RANK MASTER_ADDR MASTER_PORT for several
# machines.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh
# shellcheck source=scripts/lib/launch.sh
. scripts/lib/launch.sh

gpus=${NUM_GPUS:-$(num_gpus_here)}
set_flags \
  --model_name_or_path "${MODEL_NAME_OR_PATH:-lmsys/vicuna-13b-v1.5}" \
  --version v1 \
  --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}" \
  --image_folder "${IMAGE_FOLDER:-./playground/data}" \
  --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}" \
  --mm_projector_type mlp2x_gelu \
  --mm_vision_select_layer -2 \
  --mm_use_im_start_end False \
  --mm_use_im_patch_token False \
  --image_aspect_ratio pad \
  --group_by_modality_length True \
  --bf16 True \
  --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b}" \
  --num_train_epochs 1 \
  --per_device_train_batch_size 16 \
  --per_device_eval_batch_size 4 \
  --gradient_accumulation_steps 1 \
  --evaluation_strategy "no" \
  --save_strategy "steps" \
  --save_steps 50000 \
  --save_total_limit 1 \
  --learning_rate 2e-5 \
  --weight_decay 0. \
  --warmup_ratio 0.03 \
  --lr_scheduler_type "cosine" \
  --logging_steps 1 \
  --tf32 True \
  --model_max_length 2048 \
  --gradient_checkpointing True \
  --dataloader_num_workers 4 \
  --lazy_preprocess True \
  --report_to "${REPORT_TO:-wandb}"
set_device_flags "$gpus" "${DEEPSPEED-./scripts/zero3.json}"
set_flags_of_user "$@"
set_default_projector ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin
launch llava.train.train_mem "$gpus"
