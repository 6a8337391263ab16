"""Which solo-learn is taken, and what is said when there is none."""

import os
import subprocess
import sys
from pathlib import Path

from ressl_plugin import host

ROOT = Path(__file__).resolve().parents[3]
OF_1_0_2 = (
    "barlow_twins byol deepclusterv2 dino mocov2plus nnbyol nnclr nnsiam ressl simclr simsiam "
    "swav vicreg wmse"
)


def run_python(code, **environment):
    """A fresh interpreter, for what happens at the host's import."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_import_is_cheap():
    code = (
        "import sys, ressl_plugin.host; print([m for m in ('torch', 'solo') if m in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"


def test_registry_is_the_hosts_own_dict():
    import solo.methods

    assert host.METHODS is solo.methods.METHODS
    assert set(OF_1_0_2.split()) <= set(host.METHODS)


IMPORT = """
import sys
from ressl_plugin.utils.errors import UserError
from ressl_plugin import host
try:
    host.METHODS
except UserError as error:
    print(error)
"""


def test_bad_checkout_is_named(tmp_path):
    said = run_python(IMPORT, SOLO_LEARN=str(tmp_path / "none")).stdout
    assert f"SOLO_LEARN={tmp_path / 'none'}" in said and len(said.splitlines()) == 1


def test_unknown_solo_is_no_host(tmp_path):
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo" / "__init__.py").write_text("")
    said = run_python(IMPORT, SOLO_LEARN=str(tmp_path)).stdout
    assert str(tmp_path / "solo") in said and "pip install --no-deps solo-learn==1.0.2" in said


def test_missing_host_says_how_to_install():
    # An import path without solo: a finder that hides it, in front of all others.
    hide = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "solo" else find(name, *a)
"""
    said = run_python(hide + IMPORT, SOLO_LEARN="").stdout
    assert "pip install --no-deps solo-learn==1.0.2" in said and "SOLO_LEARN=" in said


def test_another_solo_loaded_before_is_named(tmp_path):
    (tmp_path / "solo").mkdir()
    (tmp_path / "solo" / "__init__.py").write_text("")
    code = "import types, sys; m = types.ModuleType('solo'); m.__file__ = '/elsewhere/solo/x.py'\n"
    said = run_python(code + "sys.modules['solo'] = m\n" + IMPORT, SOLO_LEARN=str(tmp_path)).stdout
    assert "already imported from /elsewhere/solo" in said
