"""What a user installs: the metadata, and wheel and sdist, which train from an empty directory."""

import email
import glob
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ressl_plugin

ROOT = Path(__file__).parents[2]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
OF_A_CHECKOUT = (".sh", ".sbatch", ".txt", ".pyc")  # of scripts/, what no installation needs
TINY = (
    "max_epochs=1", "backbone.name=timm:resnet18",
    "backbone.kwargs={channels:[8,8,8,8],zero_init_last:false}",
    "method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8", "accelerator=cpu",
    "method_kwargs.queue_size=32", "optimizer.batch_size=64", "enable_progress_bar=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, for a build leaves its own files behind."""
    left_out = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    return shutil.copytree(
        ROOT, tmp_path_factory.mktemp("source") / "plugin", symlinks=True,
        ignore=shutil.ignore_patterns(".git", *left_out),
    )  # fmt: skip


def hook(source, call):
    """One of setuptools' build hooks, in the directory; returns the name of what it made."""
    code = f"from setuptools import build_meta; print('made', build_meta.{call})"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=source, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1].removeprefix("made ")


@pytest.fixture(scope="module")
def metadata(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("metadata")
    made = hook(source, f"prepare_metadata_for_build_wheel({str(folder)!r})")
    return email.message_from_string((folder / made / "METADATA").read_text())


def test_metadata(metadata):
    assert metadata["License-Expression"] == "MIT" and metadata["License"] is None
    classifiers = metadata.get_all("Classifier")
    assert not [c for c in classifiers if c.startswith("License")]  # PyPI refuses both
    pythons = [c.rpartition(" ")[2] for c in classifiers if re.search(r"Python :: 3\.\d+$", c)]
    assert pythons == [f"3.{minor}" for minor in range(10, 15)]
    assert metadata["Requires-Python"] == f">={pythons[0]}"
    assert "Topic :: Scientific/Engineering :: Artificial Intelligence" in classifiers
    keywords = metadata["Keywords"].split(",")
    assert {"self-supervised learning", "ReSSL", "solo-learn"} <= set(keywords) and all(keywords)
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    readme = (ROOT / "README.md").read_text()
    assert urls["Paper"] in readme and urls["Framework"] in readme


def test_the_long_description_is_the_readme(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text()
    assert metadata.get_payload().strip() == readme.strip()
    assert readme.startswith("# ") and readme.count("```") % 2 == 0


def test_one_version(metadata):
    version = ressl_plugin.__version__
    assert metadata["Version"] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == version


def test_every_file_that_is_not_code_is_package_data():
    globs = [word.strip() for word in SETUP["options.package_data"]["ressl_plugin"].split(",")]
    package = ROOT / "ressl_plugin"
    found = {file for pattern in globs for file in glob.glob(pattern, root_dir=package)}
    there = {
        file
        for file in glob.glob("**/*", root_dir=package, recursive=True)
        if (package / file).is_file() and not file.endswith((".py", *OF_A_CHECKOUT))
    }
    assert found == there and "recipes/pretrain/digits/ressl.yaml" in found


@pytest.fixture(scope="module")
def archives(source, tmp_path_factory):
    """{"wheel": its path, "sdist": its path}, made as `python -m build` does: one of the other."""
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.mark.slow
def test_both_hold_the_package_and_nothing_else(archives):
    ours = ("ressl_plugin", "hydra_plugins")
    there = {
        file
        for folder in ours
        for file in glob.glob(f"{folder}/**/*", root_dir=ROOT, recursive=True)
        if (ROOT / file).is_file() and not file.endswith(OF_A_CHECKOUT)
    }
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        names = wheel.namelist()
    assert {name for name in names if ".dist-info/" not in name} == there
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

    with tarfile.open(archives["sdist"]) as sdist:
        members = [member for member in sdist.getmembers() if not member.isdir()]
    assert all(member.isreg() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    beside = {name for name in names - there if not name.startswith("ressl_plugin.egg-info/")}
    assert there <= names
    assert beside == {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_trains_from_an_empty_directory(kind, archives, tmp_path):
    place, home = tmp_path / "empty", tmp_path / "venv"
    place.mkdir()
    venv.create(home)
    (purelib,) = home.glob("lib/python*/site-packages")
    # the dependencies after its own; .pth files there, as of an editable install, are not read
    dependencies = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (purelib / "dependencies.pth").write_text("\n".join(dependencies))
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*words):
        words = [home / "bin" / words[0], *words[1:]]
        done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = ("python", "-m", "pip", "install", "--quiet", "--no-index")
    # seen in the dependencies' folder, it would not be installed again: --ignore-installed
    options = ("--no-deps", "--ignore-installed", "--no-build-isolation")
    call(*pip, *options, str(archives[kind]))
    found = call("python", "-c", "import ressl_plugin; print(ressl_plugin.__file__)")
    assert Path(found.strip()).is_relative_to(purelib)
    call("ressl", "data", "digits", "datasets/digits")
    call("ressl", "pretrain", "digits/ressl", *TINY)
    (run,) = (place / "runs").iterdir()
    assert (run / "last.ckpt").is_file() and (run / "config.yaml").is_file()


def test_what_is_required_is_what_is_installed(metadata):
    """The names are of the packages meant: each is here, at a version that is allowed."""
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    for requirement in (r for r in required if r.marker is None):
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name))
