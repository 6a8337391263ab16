#!/usr/bin/env bash
# solo-learn's own settings for ReSSL on ImageNet-100, kept as they are: 78.48 linear after 400
# Usage: bash scripts/pretrain/imagenet-100/ressl_solo.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/imagenet-100/ressl_solo.yaml "$@"
