#!/usr/bin/env bash
# Figure 2 of the paper; its run is trained if it is not there.
# Usage: bash scripts/paper/figure2.sh [key=value ...] [--data NAME ...] [--out runs/paper]
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl paper figure2 "$@"
