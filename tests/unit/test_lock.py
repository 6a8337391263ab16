"""scripts/lock.txt has what setup.cfg asks for, by exact version and hash, from no named place."""

import configparser
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = ("lock.txt", "lock_host.txt")


def locked(name):
    """The requirements of a file, each with its hashes."""
    text = (ROOT / "scripts" / name).read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        requirement, *hashes = line.split("--hash=")
        found.append((Requirement(requirement.strip()), hashes))
    return found


def asked():
    """What scripts/venv.sh installs: the package's own needs and its extras but wandb."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = [setup["options"]["install_requires"], *(extras[e] for e in ("dev", "figures", "dali"))]
    return [Requirement(line) for line in "\n".join(lines).splitlines() if line.strip()]


def name_of(requirement):
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def versions(python):
    here = {"python_version": python, "python_full_version": f"{python}.1"}
    return {
        name_of(r): next(iter(r.specifier)).version
        for r, _ in locked("lock.txt")
        if r.marker is None or r.marker.evaluate(here)
    }


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_it_satisfies_setup_cfg(python):
    """Else renew it: bash scripts/lock.sh."""
    found = versions(python)
    for requirement in asked():
        assert found[name_of(requirement)] in requirement.specifier, requirement


def test_the_golden_losses_are_of_these_versions():
    """Else renew them, see CONTRIBUTING.md."""
    golden = json.loads((ROOT / "tests/integration/golden_losses.json").read_text())
    assert golden["made_by"]["versions"].items() <= versions("3.11").items()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_known_by_its_hash(name):
    for requirement, hashes in locked(name):
        assert [s.operator for s in requirement.specifier] == ["=="]
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", h) for h in hashes)


@pytest.mark.parametrize("name", FILES)
def test_no_index_is_named(name):
    assert "://" not in (ROOT / "scripts" / name).read_text()
