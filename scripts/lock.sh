#!/usr/bin/env bash
# Renew scripts/lock.txt and scripts/lock_host.txt: exact versions with the hashes of their files,
# for Python 3.10 and later, which scripts/venv.sh installs.
# Usage: bash scripts/lock.sh                  what setup.cfg has changed, everything else as it is
#        bash scripts/lock.sh --upgrade        the newest of all; or --upgrade-package NAME
# Then renew the golden losses (CONTRIBUTING.md).
set -euo pipefail
cd "$(dirname "$0")/.."
tool="$(mktemp -d)"
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
"$tool/bin/pip" install -q uv
compile() {
  "$tool/bin/uv" pip compile -q --universal --python-version 3.10 --generate-hashes --no-header \
    --no-annotate "$@"
}
compile --extra dev --extra figures --extra dali -o scripts/lock.txt setup.cfg "$@"
echo "solo-learn==1.0.2" | compile --no-deps -o scripts/lock_host.txt -
