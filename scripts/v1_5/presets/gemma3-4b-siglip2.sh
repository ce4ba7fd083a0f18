# shellcheck shell=bash disable=SC2034,SC2154
# The language model of Gemma 3 4B (Gemma Terms of Use) with SigLIP 2 (Apache 2.0).
# shellcheck source=/dev/null
. "$presets_dir/shared/siglip2.sh"
model=google/gemma-3-4b-it
