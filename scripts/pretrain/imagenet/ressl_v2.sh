#!/usr/bin/env bash
# Beside Table 6, row ReSSL 1x, column ImageNet (69.9): the journal version's additions.
# Usage: bash scripts/pretrain/imagenet/ressl_v2.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/imagenet/ressl_v2.yaml "$@"
