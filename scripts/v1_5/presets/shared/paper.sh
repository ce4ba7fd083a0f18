# shellcheck shell=bash disable=SC2034
# The paper's settings: 8 GPUs of 80 GB. Its presets name model and template.
tower=openai/clip-vit-large-patch14-336
data_of_pretrain=playground/data/corpus/pretrain
data_of_finetune=playground/data/corpus/finetune
zero_of_pretrain=scripts/zero2.json
zero_of_finetune=scripts/zero3.json
samples_of_pretrain=192
samples_of_finetune=256

flags_of_preset=(
  --bf16 True
  --tf32 True
  --model_max_length 2048
  --gradient_accumulation_steps 1
  --gradient_checkpointing True
  --save_strategy steps
  --save_steps 1000
  --save_total_limit 1
  --dataloader_num_workers 4
)
flags_of_pretrain=(
  --learning_rate 1e-3
  --per_device_train_batch_size 24
)
flags_of_finetune=(
  --image_aspect_ratio pad
  --learning_rate 2e-5
  --per_device_train_batch_size 32
)
