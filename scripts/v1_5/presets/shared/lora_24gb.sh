# shellcheck shell=bash disable=SC2034
# LoRA on one GPU of 24 GB. Comes after a preset, whose model, tower, template and samples a step stay.
zero_of_pretrain=
zero_of_finetune=
# the batches are meant for one process
num_gpus=1

flags_of_preset=(
  --bf16 True
  --tf32 True
  --model_max_length 2048
  --gradient_checkpointing True
  --save_strategy steps
  --save_steps 500
  --save_total_limit 1
  --dataloader_num_workers 4
)
# gradients are accumulated until a step has the preset's samples
flags_of_pretrain=(
  --learning_rate 1e-3
  --per_device_train_batch_size 4
)
flags_of_finetune=(
  --image_aspect_ratio pad
  --lora_enable True
  --lora_r 64
  --lora_alpha 128
  --learning_rate 2e-4
  --mm_projector_lr 2e-5
  --per_device_train_batch_size 2
)
