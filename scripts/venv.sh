# Sourced by the other scripts: makes .venv with the plugin, its extras and, without SOLO_LEARN, the
# host's PyPI release, of the versions in lock.txt, whose hashes are checked. PYTHON=… picks the
# interpreter; EXTRAS=dev,… the extras, of the newest versions that setup.cfg allows.

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'failed: %s\n' "$*" >&2; exit 1; }

make_venv() {
  local python="${PYTHON:-python3}" extras="${EXTRAS:-}" stamp=.venv/.installed
  local want
  want="$(cat setup.cfg pyproject.toml scripts/lock*.txt) $extras $PWD"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    say ".venv is there"
  else
    install_plugin
    printf '%s' "$want" >"$stamp"
  fi
  [ -n "${SOLO_LEARN:-}" ] || install_host
}

install_plugin() {
  command -v "$python" >/dev/null || fail "no $python; install Python 3.10 or later, or set PYTHON"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version) is too old; Python 3.10 or later is needed (set PYTHON)"
  say "installing into .venv (PyTorch, DALI and their CUDA libraries: about 6 GB, some minutes)"
  [ -x .venv/bin/pip ] || "$python" -m venv .venv || fail "python -m venv (Debian: python3-venv)"
  .venv/bin/pip install -q --upgrade pip || fail "pip could not be upgraded; is PyPI reachable?"
  local why="pip install; is PyPI reachable, the disk full?"
  local -x PYTHONWARNINGS=ignore # setuptools: that a folder here has the package's name, as it must
  if [ -n "$extras" ]; then
    .venv/bin/pip install -q -e ".[$extras]" || fail "$why"
    return
  fi
  .venv/bin/pip install -q --no-deps --require-hashes -r scripts/lock.txt || fail "$why"
  .venv/bin/pip install -q --no-deps -e . || fail "$why"
}

install_host() {
  .venv/bin/python -c 'import importlib.util as u; raise SystemExit(u.find_spec("solo") is None)' ||
    # without its dependencies: its pins are from 2021 and no current Python satisfies them
    .venv/bin/pip install -q --no-deps --require-hashes -r scripts/lock_host.txt ||
    fail "solo-learn could not be installed"
}
