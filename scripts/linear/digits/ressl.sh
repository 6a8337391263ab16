#!/usr/bin/env bash
# In no table of the paper: the small-data protocol on the digits.
# Usage: bash scripts/linear/digits/ressl.sh RUN [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl linear scripts/linear/digits/ressl.yaml pretrained_feature_extractor="${1:?usage: bash scripts/linear/digits/ressl.sh RUN [key=value ...]}" "${@:2}"
