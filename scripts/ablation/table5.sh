#!/usr/bin/env bash
# Table 5 of the paper beside our numbers; a finished cell is not run again.
# Usage: bash scripts/ablation/table5.sh [key=value ...] [--data NAME ...] [--out runs/paper]
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl paper table5 "$@"
