#!/usr/bin/env bash
# Methods on CIFAR-10 photographs, a ResNet-18 a quarter as wide, on a CPU: each with the best of the
# same rates, for the same epochs and for the same time (benchmarks/photographs.py has the stages).
# Days on two cores; stop it when you like and call it again: what is finished is not run again.
# Usage: bash scripts/benchmark/cifar10_cpu.sh ARCHIVE [arguments of photographs.py]
#        ARCHIVE: cifar-10-python.tar.gz, torchvision's folder, or a folder with train/ and test/
set -euo pipefail
archive="$(realpath "${1:?the archive, or a folder of it}")"
shift
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
make() { [ -f "$1" ] || ressl data cifar10 "$@" --from "$archive"; }
make datasets/cifar10.npz
make datasets/cifar10-held-out.npz --hold-out 5000
exec python benchmarks/photographs.py --data datasets/cifar10.npz \
  --held-out datasets/cifar10-held-out.npz --json benchmarks/results/cifar10_cpu.json "$@"
