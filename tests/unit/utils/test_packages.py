"""A package that is not installed, and Ctrl-C while packages are imported: one line."""

import subprocess
import sys

import pytest

from ressl_plugin.utils import packages

# the package is not found, as where it is not installed; or its import is interrupted
CODE = """
import importlib.util, os, signal, sys
NAME, DO = {name!r}, {do!r}
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == NAME:
            if DO == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

found = importlib.util.find_spec
if DO == "hide":
    importlib.util.find_spec = lambda n, *a: None if n.partition(".")[0] == NAME else found(n, *a)
sys.meta_path.insert(0, Finder())
from ressl_plugin.cli.main import main
assert NAME not in sys.modules
sys.exit(main({argv!r}))
"""


def run(name, do, *argv):
    code = CODE.format(name=name, do=do, argv=argv)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "install"),
    [("lightning", "lightning"), ("hydra", "hydra-core"), ("torchvision", "torchvision")],
)
def test_a_missing_package_is_named_with_how_to_install_it(tmp_path, name, install):
    done = run(name, "hide", "pretrain", "digits/ressl", f"run_dir={tmp_path}/run")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ressl: error: ")]
    assert line.endswith(f"{name} is not installed: pip install {install}")


def test_what_only_some_commands_need(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    error = ModuleNotFoundError("no", name="sklearn.linear_model")
    assert packages.missing(error) == "sklearn is not installed: pip install scikit-learn"
    with pytest.raises(packages.UserError, match=r"needs tensorboard, .*install tensorboard"):
        packages.need("tensorboard", "the log of events")


@pytest.mark.parametrize("name", ["ressl_plugin.nosuch", "torch.nosuch", "nosuch", None])
def test_a_module_of_ours_or_of_a_package_that_is_there_is_a_bug(name):
    assert packages.missing(ModuleNotFoundError("no", name=name)) is None


def test_ctrl_c_during_the_imports_is_an_interruption():
    done = run("torch", "interrupt", "knn", "nosuch")
    assert done.returncode == 130 and done.stderr.splitlines() == ["ressl: interrupted"]
