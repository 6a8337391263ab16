#!/usr/bin/env bash
# Table 6, row ReSSL 1x, column ImageNet: 69.9 (2x: 71.4; Table 7: 73.8 and 74.7).
# Usage: bash scripts/linear/imagenet/ressl.sh RUN [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl linear scripts/linear/imagenet/ressl.yaml pretrained_feature_extractor="${1:?usage: bash scripts/linear/imagenet/ressl.sh RUN [key=value ...]}" "${@:2}"
