"""The workflow, which runs elsewhere: what it calls exists, and it agrees with setup.cfg."""

import re
import shlex
import subprocess
from configparser import ConfigParser
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
STEPS = [step for job in JOBS.values() for step in job["steps"]]
MATRIX = JOBS["test"]["strategy"]["matrix"]
ON_A_RUNNER = ("bash", "echo", "git", "python")


def commands():
    """The words of each command, without redirections."""
    lines = "\n".join(step["run"] for step in STEPS if "run" in step).splitlines()
    return [[w for w in shlex.split(line) if w[0] != ">"] for line in lines if line]


def test_every_command_exists():
    called = commands()
    assert ["bash", "scripts/test.sh"] in called and len(called) > 6
    installed = {word for words in called if "install" in words for word in words}
    for program, *words in called:
        assert program in ON_A_RUNNER, program
        for file in (w for w in words if w.startswith(("scripts/", "tests/"))):
            assert (ROOT / file).is_file(), file
        if program == "python":
            option, module, *_ = words
            assert option == "-m" and (module == "pip" or module.replace("_", "-") in installed)


def test_actions_are_pinned_to_a_major_version():
    used = [step["uses"] for step in STEPS if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)


def test_the_matrix_has_every_python_both_hosts_and_the_lowest_versions():
    classifiers = SETUP["metadata"]["classifiers"]
    pythons = re.findall(r"Python :: (3\.\d+)$", classifiers, re.M)
    assert MATRIX["python"] == pythons and set(MATRIX["host"]) == {"pypi", "main"}
    more = {(row["versions"], row["python"], row["host"]) for row in MATRIX["include"]}
    assert {("lowest", pythons[0], "main"), ("lowest", pythons[0], "pypi")} <= more
    assert {*MATRIX["versions"], *(row[0] for row in more)} == {"newest", "lowest", "locked"}
    asked = set(re.findall(r"matrix\.versions .= '(\w+)'", str(STEPS)))
    assert asked == {"lowest", "locked"}
    used = {match for step in STEPS for match in re.findall(r"matrix\.(\w+)", str(step))}
    assert used == {"python", "versions", "host"}
    assert re.findall(r"matrix\.host == '(\w+)'", str(STEPS)) == ["main"]


def test_the_extras_are_those_of_setup_cfg():
    (extras,) = (word[7:].split(",") for words in commands() for word in words if "EXTRAS=" in word)
    assert set(extras) <= set(SETUP["options.extras_require"]) and "dev" in extras


def test_lowest_prints_every_bound_of_setup_cfg():
    groups = [SETUP["options"]["install_requires"], *SETUP["options.extras_require"].values()]
    lines = [line for group in groups for line in group.splitlines()]
    required = [Requirement(line) for line in lines if line and not line.startswith("#")]
    bounds = {
        f"{requirement.name}=={bound.version}"
        for requirement in required
        for bound in requirement.specifier
    }
    assert all(b.operator == ">=" for requirement in required for b in requirement.specifier)
    words = ["bash", ROOT / "scripts/lowest.sh"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert set(printed) == bounds and len(printed) == len(bounds)


def test_the_image_is_made_of_what_is_here():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [w for line in lines if line.startswith("COPY ") for w in line.split()[1:-1]]
    assert len(lines) < 15 and all((ROOT / name).exists() for name in copied)
    assert {"setup.cfg", "pyproject.toml", "ressl_plugin", "hydra_plugins", "scripts"} <= set(
        copied
    )
    (host,) = re.findall(r"solo-learn==\S+", "\n".join(lines))
    assert host in (ROOT / "docs/install.md").read_text()
