# shellcheck shell=bash disable=SC2034
# Two CPU cores, minutes: models of a few million parameters on the built-in corpus.
model=playground/models/mini/llm
tower=playground/models/mini/vision_tower
# small models gain nothing from a system sentence and pay for its tokens
version=lrm_bare
data_of_pretrain=playground/data/emoji_scenes/corpus/pretrain
data_of_finetune=playground/data/emoji_scenes/corpus/finetune
zero_of_pretrain=
zero_of_finetune=
samples_of_pretrain=32
samples_of_finetune=32
# the schedule is meant for one process
num_gpus=1

flags_of_preset=(
  --feature_cache auto
  --image_aspect_ratio pad
  --model_max_length 512
  --per_device_train_batch_size 32
  --optim adamw_torch_fused
  --adam_beta2 0.95
  --max_grad_norm 1.0
  --save_strategy steps
  --save_steps 100
  --save_total_limit 1
  --logging_steps 10
  --dataloader_num_workers 0
)
flags_of_pretrain=(
  --learning_rate 2e-3
  --max_steps 1000
)
flags_of_finetune=(
  --learning_rate 1e-3
  --max_steps 1800
)
