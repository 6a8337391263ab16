#!/usr/bin/env bash
# Beside Table 8, row ReSSL 1x, column ImageNet (58.1): its settings on ImageNet-100, ResNet-18.
# Usage: bash scripts/pretrain/imagenet-100/ressl.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/imagenet-100/ressl.yaml "$@"
