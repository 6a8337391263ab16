#!/usr/bin/env bash
# ImageNet-1k with the journal version's additions (arXiv 2203.08717): a predictor on the student, and
# Usage: bash scripts/pretrain/imagenet/ressl_v2.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/imagenet/ressl_v2.yaml "$@"
