# shellcheck shell=bash disable=SC2034,SC2154
# The preset gemma3-4b-siglip2 on one GPU of 24 GB: LoRA on frozen 16-bit weights.
# lrm plan --preset gemma3-4b-siglip2-lora --gpus 1 --gpu rtx-4090
# shellcheck source=/dev/null
. "$presets_dir/gemma3-4b-siglip2.sh"
# shellcheck source=/dev/null
. "$presets_dir/shared/lora_24gb.sh"
