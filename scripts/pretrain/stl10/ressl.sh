#!/usr/bin/env bash
# Table 1, row ReSSL, column STL-10: 88.25 linear top-1 after 200 epochs (Table 2, tau_t 0.05).
# Usage: bash scripts/pretrain/stl10/ressl.sh [key=value ...]
set -euo pipefail
cd "$(dirname "$0")/../../.."
PATH="$PWD/.venv/bin:$PATH"
exec ressl pretrain scripts/pretrain/stl10/ressl.yaml "$@"
