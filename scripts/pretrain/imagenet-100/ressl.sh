#!/usr/bin/env bash
# ImageNet-100, which the paper does not have: the settings of Table 8 (ResNet-18) on one GPU,
# Usage: bash scripts/pretrain/imagenet-100/ressl.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/imagenet-100/ressl.yaml "$@"
