# shellcheck shell=bash disable=SC2034,SC2154
# Aya Expanse 8B (CC BY-NC 4.0: not for commercial use) with SigLIP 2 (Apache 2.0).
# shellcheck source=/dev/null
. "$presets_dir/shared/siglip2.sh"
model=CohereLabs/aya-expanse-8b
