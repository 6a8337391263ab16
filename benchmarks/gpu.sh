#!/usr/bin/env bash
# Everything that needs a GPU, unattended, in eight minutes on one H200: one table, OUT/gpu.md.
#   benchmarks/gpu.sh [--data FILE.npz] [--out OUT] [--seconds 480] [--dry-run] ...   (see gpu.py)
# PYTHON chooses the interpreter, SOLO_LEARN a checkout of solo-learn's main branch, TMPDIR the
# place of what is only needed meanwhile.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
