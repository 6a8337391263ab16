#!/usr/bin/env bash
# Prints the lowest versions that setup.cfg allows, of every requirement that has a bound, as a
# constraint file.
# Usage: bash scripts/lowest.sh >lowest.txt
#        PIP_CONSTRAINT=$PWD/lowest.txt EXTRAS=dev,figures,dali PYTHON=python3.10 bash scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
sed -nE 's/^(    |[a-z]+ = )([A-Za-z0-9._-]+)>=([0-9.]+)$/\2==\3/p' setup.cfg | sort -u
