#!/usr/bin/env bash
# Table 1, row ReSSL, column CIFAR-10 (90.20) on one GPU: trains to the end, evaluates (kNN, linear
# fast and trained), exports, draws the figures.
# Usage: benchmarks/gpu_cifar10.sh FILE.npz [OUT]      FILE.npz: `ressl data cifar10 FILE.npz --from …`
#        benchmarks/gpu_cifar10.sh --dry-run [OUT]     digits, tiny settings, on the CPU
# The work goes on in the background. A call waits for it, PIECE seconds (540) at most, and then has
# exit status 75: call again. What was killed meanwhile goes on from its last checkpoint. 0: all is
# done; 1: something failed, and is tried again by the next call. PYTHON chooses the interpreter.
set -euo pipefail
data="${1:?usage: benchmarks/gpu_cifar10.sh FILE.npz|--dry-run [OUT]}"
out="$(realpath -m "${2:-runs/gpu_cifar10}")"
root="$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
ressl() { "${PYTHON:-python3}" -m ressl_plugin.cli "$@"; }

stage() {  # name, command ...: unless it is done
  [ ! -e "$out/$1.done" ] || return 0
  echo "$1" >"$out/stage"
  "${@:2}" >>"$out/$1.log" 2>&1 || { touch "$out/failed"; exit 1; }
  touch "$out/$1.done"
}

work() {
  local run="$out/run" recipe linear
  if [ "$data" = --dry-run ]; then
    local tiny=(digits/ressl data.train_path="$out/digits/train" data.val_path="$out/digits/val"
      backbone.name=timm:resnet10t backbone.stem=auto "backbone.kwargs={channels: [8, 8, 16, 16]}"
      accelerator=cpu)
    recipe=("${tiny[@]}" data.fraction=0.2 max_epochs=2)
    linear=("${tiny[@]}" pretrained_feature_extractor="$run" max_epochs=1)
    stage digits ressl data digits "$out/digits"
  else
    recipe=(cifar/ressl data.path="$(realpath "$data")")
    linear=("$run" --protocol small)
  fi
  stage pretrain ressl pretrain "${recipe[@]}" run_dir="$run" resume=true --meter
  stage knn ressl knn "$run"
  stage linear_fast ressl linear "$run" --fast
  [ -d "$out/cifar10" ] || stage export ressl export "$run" "$out/cifar10"
  stage figures ressl figures "$run"
  stage linear ressl linear "${linear[@]}"  # the longest
  touch "$out/done"
}

if [ -n "${IN_BACKGROUND:-}" ]; then
  work
  exit
fi
mkdir -p "$out"
exec 9>>"$out/lock"  # held by the work and its processes as long as there are any
if [ ! -e "$out/done" ] && flock -n 9; then
  rm -f "$out/failed"
  IN_BACKGROUND=1 setsid bash "${BASH_SOURCE[0]}" "$data" "$out" </dev/null >/dev/null 2>&1 &
fi
exec 9>&-
while [ ! -e "$out/done" ] && [ ! -e "$out/failed" ]; do
  if ((SECONDS >= ${PIECE:-540})) || flock -n "$out/lock" true; then
    [ ! -e "$out/done" ] || break
    echo "at $(cat "$out/stage" 2>/dev/null || echo the beginning); call again"
    exit 75
  fi
  sleep 1
done
for log in "$out"/*.log; do
  echo "== $log"
  tail -n 5 "$log"
done
[ -e "$out/done" ]
