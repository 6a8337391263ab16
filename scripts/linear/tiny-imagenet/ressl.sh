#!/usr/bin/env bash
# Table 1, row ReSSL, column Tiny ImageNet: 46.60.
# Usage: bash scripts/linear/tiny-imagenet/ressl.sh RUN [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl linear scripts/linear/tiny-imagenet/ressl.yaml pretrained_feature_extractor="${1:?usage: bash scripts/linear/tiny-imagenet/ressl.sh RUN [key=value ...]}" "${@:2}"
