#!/usr/bin/env bash
# Beside Table 1, row ReSSL, column CIFAR-10 (90.20): a few epochs of a narrow network on a processor.
# Usage: bash scripts/pretrain/cifar/ressl_fast.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/cifar/ressl_fast.yaml "$@"
