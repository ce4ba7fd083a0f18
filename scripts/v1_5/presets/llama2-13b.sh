# shellcheck shell=bash disable=SC2034,SC2154
# The paper's settings on Llama 2 (its Table 4).
# shellcheck source=/dev/null
. "$presets_dir/shared/paper.sh"
model=meta-llama/Llama-2-13b-hf
version=lrm_v1
