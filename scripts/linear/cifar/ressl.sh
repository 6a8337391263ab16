#!/usr/bin/env bash
# Table 1, row ReSSL, column CIFAR-10: 90.20. CIFAR-100: data.dataset=cifar100, 63.79.
# Usage: bash scripts/linear/cifar/ressl.sh RUN [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl linear scripts/linear/cifar/ressl.yaml pretrained_feature_extractor="${1:?usage: bash scripts/linear/cifar/ressl.sh RUN [key=value ...]}" "${@:2}"
