# shellcheck shell=bash disable=SC2034,SC2154
# The paper's model.
# shellcheck source=/dev/null
. "$presets_dir/shared/paper.sh"
model=lmsys/vicuna-13b-v1.5
version=lrm_v1
