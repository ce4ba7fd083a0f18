# shellcheck shell=bash disable=SC2034,SC2154
# Language models of 2024 and 2025 with SigLIP 2 (Apache 2.0), for 8 GPUs of 80 GB.
#
# Samples a step, learning rates, warm-up and schedule are LLaVA-1.5's (its scripts/v1_5/pretrain.sh
# and finetune.sh); Pangea has the same learning rates (neulab/Pangea, scripts/train/
# pretrain_pangea.sh and finetune_pangea.sh). Pangea also trains the tower, with 2e-6, which
# --mm_tunable_parts asks for; here it is frozen, as in LLaVA-1.5 and in the paper.
# shellcheck source=/dev/null
. "$presets_dir/shared/paper.sh"
tower=google/siglip2-so400m-patch14-384
version=auto
samples_of_pretrain=256
samples_of_finetune=128
flags_of_pretrain+=(--per_device_train_batch_size 32)
flags_of_finetune+=(--per_device_train_batch_size 16)
