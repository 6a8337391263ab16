#!/usr/bin/env bash
# Seven methods on CIFAR-10 with the recipe of Table 1, three seeds. For one GPU.
# A finished cell is not run again.
# Usage: bash scripts/benchmark/cifar10.sh [key=value ...] [--methods NAME ...] [--seeds N ...]
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl benchmark cifar/ressl data.download=true --out runs/benchmark/cifar10 "$@"
