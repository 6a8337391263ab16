#!/usr/bin/env bash
# scikit-learn's handwritten digits (1,797 images of 8x8): a run to see it all work, not in the paper.
# Usage: bash scripts/pretrain/digits/ressl.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/digits/ressl.yaml "$@"
