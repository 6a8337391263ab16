#!/usr/bin/env bash
# Table 1, row ReSSL, column STL-10: 88.25, on the 5,000 labelled images.
# Usage: bash scripts/linear/stl10/ressl.sh RUN [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl linear scripts/linear/stl10/ressl.yaml pretrained_feature_extractor="${1:?usage: bash scripts/linear/stl10/ressl.sh RUN [key=value ...]}" "${@:2}"
