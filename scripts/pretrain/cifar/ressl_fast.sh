#!/usr/bin/env bash
# In no table of the paper: CIFAR-10 on a processor, a few epochs of a narrow network.
# Usage: bash scripts/pretrain/cifar/ressl_fast.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/cifar/ressl_fast.yaml "$@"
