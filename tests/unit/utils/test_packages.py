"""An extra that is not installed, and Ctrl-C while packages are imported: one line."""

import subprocess
import sys

import pytest

from ressl_plugin.utils import packages
from ressl_plugin.utils.errors import UserError

# the import of torch is interrupted
CODE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from ressl_plugin.cli.main import main
assert "torch" not in sys.modules
sys.exit(main(["knn", "nosuch"]))
"""


def test_an_extra_that_is_not_installed_is_one_line():
    with pytest.raises(UserError, match=r"needs nosuch, .*pip install 'ressl_plugin\[extra\]'"):
        packages.need("nosuch", "extra", "the log of events")


def test_ctrl_c_during_the_imports_is_an_interruption():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.splitlines() == ["ressl: interrupted"]
