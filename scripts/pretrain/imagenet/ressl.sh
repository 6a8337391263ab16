#!/usr/bin/env bash
# Table 6, ReSSL 1x backprop, ImageNet-1k, ResNet-50: 69.9 linear top-1 after 200 epochs.
# Usage: bash scripts/pretrain/imagenet/ressl.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/imagenet/ressl.yaml "$@"
