#!/usr/bin/env bash
# In no table of the paper: ImageNet's linear protocol on ImageNet-100.
# Usage: bash scripts/linear/imagenet-100/ressl.sh RUN [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl linear scripts/linear/imagenet-100/ressl.yaml pretrained_feature_extractor="${1:?usage: bash scripts/linear/imagenet-100/ressl.sh RUN [key=value ...]}" "${@:2}"
