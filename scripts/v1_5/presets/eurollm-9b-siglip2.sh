# shellcheck shell=bash disable=SC2034,SC2154
# EuroLLM-9B-Instruct (Apache 2.0) with SigLIP 2 (Apache 2.0).
# shellcheck source=/dev/null
. "$presets_dir/shared/siglip2.sh"
model=utter-project/EuroLLM-9B-Instruct
