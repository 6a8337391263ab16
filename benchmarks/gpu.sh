#!/usr/bin/env bash
# The whole GPU measurement, unattended, in under ten minutes on one H200: one table, gpu.md.
#   benchmarks/gpu.sh [--data DIR] [--out DIR] [--dry-run] ...      (see gpu.py)
# PYTHON chooses the interpreter, SOLO_LEARN a checkout of solo-learn's main branch.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# exit status 124: cut off; what was measured by then is in gpu.md
exec timeout --signal=INT --kill-after=15 "${LIMIT:-590}" "${PYTHON:-python}" "$here/gpu.py" "$@"
