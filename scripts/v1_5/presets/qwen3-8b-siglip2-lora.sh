# shellcheck shell=bash disable=SC2034,SC2154
# The preset qwen3-8b-siglip2 on one GPU of 24 GB: LoRA on frozen 4-bit weights (bitsandbytes, QLoRA).
# lrm plan --preset qwen3-8b-siglip2-lora --gpus 1 --gpu rtx-4090
# shellcheck source=/dev/null
. "$presets_dir/qwen3-8b-siglip2.sh"
# shellcheck source=/dev/null
. "$presets_dir/shared/lora_24gb.sh"
flags_of_preset+=(--bits 4)
