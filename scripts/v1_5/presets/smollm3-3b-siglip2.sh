# shellcheck shell=bash disable=SC2034,SC2154
# SmolLM3-3B (Apache 2.0) with SigLIP 2 (Apache 2.0).
# shellcheck source=/dev/null
. "$presets_dir/shared/siglip2.sh"
model=HuggingFaceTB/SmolLM3-3B
