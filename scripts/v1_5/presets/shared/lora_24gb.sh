# shellcheck shell=bash disable=SC2034
# What the presets for LoRA on one GPU of 24 GB have in common; they name model and precision.
tower=openai/clip-vit-large-patch14-336
version=lrm_v1
data_of_pretrain=playground/data/corpus/pretrain
data_of_finetune=playground/data/corpus/finetune
zero_of_pretrain=
zero_of_finetune=
samples_of_pretrain=192
samples_of_finetune=256
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
# as many samples a step as the paper has on eight GPUs: 192 and 256
flags_of_pretrain=(
  --learning_rate 1e-3
  --per_device_train_batch_size 4
  --gradient_accumulation_steps 48
)
flags_of_finetune=(
  --image_aspect_ratio pad
  --lora_enable True
  --lora_r 64
  --lora_alpha 128
  --learning_rate 2e-4
  --mm_projector_lr 2e-5
  --per_device_train_batch_size 2
  --gradient_accumulation_steps 128
)
