# shellcheck shell=bash disable=SC2034
# A real pretrained language model that a CPU can adapt: SmolLM2-135M-Instruct, LoRA, built-in corpus.
# python scripts/get_smollm2.py fetches it.
model=playground/models/smollm2
tower=playground/models/mini/vision_tower
version=chatml_direct
data_of_pretrain=playground/data/emoji_scenes/corpus/pretrain
data_of_finetune=playground/data/emoji_scenes/corpus/finetune
zero_of_pretrain=
zero_of_finetune=
samples_of_pretrain=8
samples_of_finetune=8
num_gpus=1

flags_of_preset=(
  --feature_cache auto
  --image_aspect_ratio pad
  --model_max_length 1024
  --per_device_train_batch_size 8
  --optim adamw_torch_fused
  --max_grad_norm 1.0
  --save_strategy steps
  --save_steps 30
  --save_total_limit 1
  --logging_steps 1
  --dataloader_num_workers 0
)
flags_of_pretrain=(
  --learning_rate 2e-3
  --max_steps 200
)
flags_of_finetune=(
  --lora_enable True
  --lora_r 32
  --lora_alpha 64
  --learning_rate 5e-4
  --mm_projector_lr 5e-4
  --max_steps 120
)
