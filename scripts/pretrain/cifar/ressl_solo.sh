#!/usr/bin/env bash
# solo-learn's own settings for ReSSL on CIFAR-10, kept as they are: 90.63 with the online
# Usage: bash scripts/pretrain/cifar/ressl_solo.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/cifar/ressl_solo.yaml "$@"
