#!/usr/bin/env bash
# From a fresh machine to a trained, evaluated model: pre-trains ReSSL and sets its features beside
# the untrained network's and raw pixels.
#   bash scripts/quickstart.sh                     scikit-learn's handwritten digits, 6 minutes on two
#                                                  CPU cores after installation
#   bash scripts/quickstart.sh cifar10 FILE.npz    photographs, five epochs of cifar/ressl_fast; FILE:
#                                                  `.venv/bin/ressl data cifar10 FILE.npz --from
#                                                  cifar-10-python.tar.gz`, the archive from
#                                                  https://www.cs.toronto.edu/~kriz/cifar.html
# Run again, it redoes only what is missing.
set -euo pipefail
usage="usage: bash scripts/quickstart.sh [cifar10 FILE.npz]"
case "$#:${1:-digits}" in
  0:*) run=runs/quickstart ;;
  2:cifar10)
    run=runs/quickstart_cifar10 file="$(realpath "$2")"
    [ -f "$file" ] || { echo "quickstart: $2: no such file" >&2; exit 2; }
    ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv
export PATH="$PWD/.venv/bin:$PATH"

if [ $# = 0 ]; then
  say "digits as an image folder: datasets/digits"
  ressl data digits datasets/digits || fail "the digits could not be written"
  recipe=(digits/ressl name=quickstart)
else
  recipe=(cifar/ressl_fast name=quickstart data.path="$file" max_epochs=5 knn_eval.every=1)
fi

say "pre-training into $run"
ressl pretrain "${recipe[@]}" run_dir="$run" resume=true || fail "pre-training"

say "kNN"
ressl knn "$run" --k 5 20 --temperature 0.07 || fail "kNN"
say "linear classifier (fast: on features extracted once)"
ressl linear "$run" --fast || fail "linear evaluation"
say "figures"
ressl figures "$run" || fail "figures"
say "accuracy in %, mean ± standard deviation over 10 draws of the labelled images"
ressl compare "$run" || fail "comparison"

say "done: table in $run/comparison.md, all numbers in $run/results.json, pictures in $run/figures"
