#!/usr/bin/env bash
# In no table of the paper: scikit-learn's handwritten digits, to see it all work.
# Usage: bash scripts/pretrain/digits/ressl.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/digits/ressl.yaml "$@"
