#!/usr/bin/env bash
# Tries everything that needs a GPU on one GPU, in under ten minutes: bash tools/gpu/check.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=scripts/lib/common.sh
. scripts/lib/common.sh

python=$(find_python .venv)
need_packages "$python"
export_process_settings
use_python "$python"
exec "$python" tools/gpu/check.py "$@"
