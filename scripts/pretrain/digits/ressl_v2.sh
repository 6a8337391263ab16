#!/usr/bin/env bash
# The digits with the journal version's additions: a predictor on the student, InfoNCE warm-up.
# Usage: bash scripts/pretrain/digits/ressl_v2.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/digits/ressl_v2.yaml "$@"
