"""The site: built strictly, of pages that name every recipe, evaluator and public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ressl_plugin
from ressl_plugin import config
from ressl_plugin.evaluate import declared

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if sys.version_info < (3, 11):
        pytest.skip("mkdocstrings for Python 3.10 does not know pymdown-extensions 12")
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason=f"no {name}: pip install 'ressl_plugin[docs]'")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_built(site):
    pages = {file.with_suffix(".html").name for file in DOCS.glob("*.md")}
    assert pages | {"index.html", "contributing.html", "results.html"} <= {
        file.name for file in site.glob("*.html")
    }


def test_no_page_fetches_anything(site):
    for page in site.glob("*.html"):
        html = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"', html)
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|icon)"[^>]*>', html)
        assert loaded and not [what for what in loaded if "//" in what], page.name


def test_pictures_are_there(site):
    for page in site.glob("*.html"):
        for picture in re.findall(r'<img[^>]*\ssrc="([^"]+)"', page.read_text()):
            assert (page.parent / picture).is_file(), (page.name, picture)


def test_the_reference_has_every_public_name(site):
    html = (site / "api.html").read_text()
    places = {name: module for module, names in ressl_plugin._WHERE.items() for name in names}
    assert {*places, "__version__"} == set(ressl_plugin.__all__)
    for name, module in places.items():
        assert f'id="ressl_plugin.{module}.{name}"' in html, name
    assert "criterion" in html and "Raises:" in html


def test_links_work_where_the_repository_is_read():
    for file in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            assert (file.parent / target).exists(), (file.name, target)


def test_every_recipe_is_listed_with_its_place_in_the_paper():
    listed = re.findall(r"^\| `([\w-]+/\w+)` \| (.*) \|$", (DOCS / "recipes.md").read_text(), re.M)
    heads = {
        name: config.find(name, "pretrain").read_text().splitlines()[0].strip("# .")
        for name in config.recipes("pretrain")
    }
    assert dict(listed) == heads and len(listed) == len(heads)


def test_every_evaluator_has_its_section():
    text = (DOCS / "evaluators.md").read_text()
    sections = re.findall(r"^## ([a-z]+)$", text, re.M)
    assert set(sections) == {one["name"] for one in declared()}
