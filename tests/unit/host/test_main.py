"""What only the main branch has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ressl_plugin import host

pytestmark = pytest.mark.skipif(
    host.GENERATION != "main", reason="the host is 1.0.2; set SOLO_LEARN to a checkout of main"
)


def test_generation_has_the_methods_that_1_0_2_lacks():
    assert {"mae", "mocov3", "supcon", "vibcreg", "all4one"} <= set(host.METHODS)


def test_host_class_is_built_unchanged(config):
    model = host.build_method(config("simclr"))
    assert type(model) is host.METHODS["simclr"]


def test_momentum_base_is_the_hosts():
    from solo.methods.base import BaseMomentumMethod

    assert issubclass(host.MomentumBase, BaseMomentumMethod)


@pytest.mark.parametrize("name", ["convnext_tiny", "wide_resnet28w2", "vit_tiny"])
def test_other_backbones(name, config):
    kwargs = {"img_size": 32} if name.startswith("vit") else {}
    backbone = host.build_backbone(config("ressl", backbone={"name": name, "kwargs": kwargs}))
    assert backbone.num_features


# of its tests those of what the plugin mends or replaces; all of them take minutes
THEIRS = ["methods/test_linear.py", "utils/test_knn.py"]


def test_the_hosts_own_tests_pass_with_the_plugin(tmp_path):
    checkout = Path(os.environ["SOLO_LEARN"])
    files = [checkout / "tests" / name for name in THEIRS]
    if not all(file.is_file() for file in files):
        pytest.skip("the checkout of solo-learn has no tests")
    code = (
        "import sys, pytest, ressl_plugin; ressl_plugin.register(); "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    words = [sys.executable, "-c", code, f"--rootdir={checkout}", *map(str, files)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(THEIRS)} passed" in done.stdout
