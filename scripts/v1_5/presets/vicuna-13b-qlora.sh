# shellcheck shell=bash disable=SC2034,SC2154
# Vicuna 13B on one GPU of 24 GB: frozen 4-bit weights (bitsandbytes), LoRA adapters (QLoRA).
# lrm plan --preset vicuna-13b-qlora --gpus 1 --gpu rtx-4090
# shellcheck source=/dev/null
. "$presets_dir/vicuna-13b.sh"
# shellcheck source=/dev/null
. "$presets_dir/shared/lora_24gb.sh"
flags_of_preset+=(--bits 4)
