#!/usr/bin/env bash
# Seven methods on scikit-learn's digits, three seeds: 21 trainings and their evaluation.
# Two CPU cores: under 45 minutes. A finished cell is not run again.
# Usage: bash scripts/benchmark/digits.sh [key=value ...] [--methods NAME ...] [--seeds N ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
ressl data digits datasets/digits
exec ressl benchmark digits/ressl max_epochs=20 checkpoint.frequency=10 \
  --out runs/benchmark/digits "$@"
