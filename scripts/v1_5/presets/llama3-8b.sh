# shellcheck shell=bash disable=SC2034,SC2154
# The paper's settings on Llama 3 (its Table 4).
# shellcheck source=/dev/null
. "$presets_dir/shared/paper.sh"
model=meta-llama/Meta-Llama-3-8B-Instruct
version=lrm_llama_3
