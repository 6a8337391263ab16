#!/usr/bin/env bash
# scikit-learn's handwritten digits (1,797 images of 8x8), not in the paper: to see it all work.
# Usage: bash scripts/pretrain/digits/ressl.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/digits/ressl.yaml "$@"
