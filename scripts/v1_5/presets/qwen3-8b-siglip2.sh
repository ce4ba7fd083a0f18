# shellcheck shell=bash disable=SC2034,SC2154
# Qwen3-8B (Apache 2.0) with SigLIP 2 (Apache 2.0).
# shellcheck source=/dev/null
. "$presets_dir/shared/siglip2.sh"
model=Qwen/Qwen3-8B
