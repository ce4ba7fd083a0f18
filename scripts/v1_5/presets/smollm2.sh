# shellcheck shell=bash disable=SC2034
# A small model for one GPU; the paper's schedule.
model=HuggingFaceTB/SmolLM2-360M
tower=openai/clip-vit-base-patch16
version=chatml_direct
data_of_pretrain=playground/data/corpus/pretrain
data_of_finetune=playground/data/corpus/finetune
zero_of_pretrain=
zero_of_finetune=

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
  --learning_rate 1e-4
  --per_device_train_batch_size 32
)
