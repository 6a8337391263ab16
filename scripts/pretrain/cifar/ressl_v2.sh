#!/usr/bin/env bash
# CIFAR-10 with the journal version's additions (arXiv 2203.08717): a predictor on the student, and
# Usage: bash scripts/pretrain/cifar/ressl_v2.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/cifar/ressl_v2.yaml "$@"
