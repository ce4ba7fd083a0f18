# shellcheck shell=bash disable=SC2034,SC2154
# Vicuna 7B on one GPU of 24 GB: frozen 16-bit weights, LoRA adapters on every linear layer.
# lrm plan --preset vicuna-7b-lora --gpus 1 --gpu rtx-4090
# shellcheck source=/dev/null
. "$presets_dir/vicuna-7b.sh"
# shellcheck source=/dev/null
. "$presets_dir/shared/lora_24gb.sh"
