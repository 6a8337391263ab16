#!/usr/bin/env bash
# From a fresh machine to a trained, evaluated model: pre-trains ReSSL on scikit-learn's
# handwritten digits and sets its features beside the untrained network's and raw pixels.
# Two CPU cores: under 6 minutes after installation. Run again, it redoes only what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv
export PATH="$PWD/.venv/bin:$PATH"
run=runs/quickstart

say "digits as an image folder: datasets/digits"
ressl data digits datasets/digits || fail "the digits could not be written"

say "pre-training into $run"
ressl pretrain digits/ressl name=quickstart run_dir="$run" resume=true || fail "pre-training"

say "kNN"
ressl knn "$run" --k 5 20 --temperature 0.07 || fail "kNN"
say "linear classifier (fast: on features extracted once)"
ressl linear "$run" --fast || fail "linear evaluation"
say "figures"
ressl figures "$run" || fail "figures"
say "accuracy in %, mean ± standard deviation over 10 draws of the labelled images"
ressl compare "$run" || fail "comparison"

say "done: table in $run/comparison.md, all numbers in $run/results.json, pictures in $run/figures"
