#!/usr/bin/env bash
# The whole test suite, on a machine with nothing but Python: makes .venv when it is absent.
# Usage: bash scripts/test.sh [pytest arguments]     e.g. -m slow, -k loss
#        SOLO_LEARN=<checkout of solo-learn's main branch> bash scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh
make_venv
say "ruff"
.venv/bin/ruff check . || fail "ruff"
say "tests (solo-learn: ${SOLO_LEARN:-the installed one})"
case " $* " in
  *" -m "*) marks=() ;;
  *) marks=(-m "not slow") ;;
esac
workers="$(.venv/bin/python -c 'import os; print(min(4, os.cpu_count() or 1))')"
exec .venv/bin/python -m pytest -n "$workers" --dist loadfile "${marks[@]}" "$@"
