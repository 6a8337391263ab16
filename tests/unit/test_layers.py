"""The house: who may import whom. docs/architecture.md says what lives on each floor."""

import ast
from pathlib import Path

import pytest

import ressl_plugin

PACKAGE = Path(ressl_plugin.__file__).parent
# from the roof down: a folder imports its own files and those of the folders after it
FLOORS = (
    "cli", "experiments", "evaluate", "train", "run", "method", "data", "views", "host", "config",
    "utils",
)  # fmt: skip
ABOVE = ("__init__", "__main__")  # the public interface: may import everything
FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if "recipes" not in p.relative_to(PACKAGE).parts]


def imported(file):
    """Folders of the package that a file imports from, and the other packages, with lines."""
    ours, others = [], []
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names = [node.module]
            if node.module == "ressl_plugin":
                names = [f"ressl_plugin.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first == "ressl_plugin" and rest and rest[0] != "__version__":
                ours.append((rest[0], node.lineno))
            else:
                others.append((first, node.lineno))
    return ours, others


def test_the_top_holds_the_floors_and_nothing_else():
    entries = {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert entries <= {*FLOORS, "__init__.py", "__main__.py", "py.typed", "recipes"}


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward_and_only_host_knows_solo(file):
    folder = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    ours, others = imported(file)
    if folder not in ABOVE:
        allowed = FLOORS[FLOORS.index(folder) :]
        upward = [f"line {line}: {name}" for name, line in ours if name not in allowed]
        assert not upward, f"{file.relative_to(PACKAGE)} imports from above: {upward}"
    if folder != "host":
        assert "solo" not in {name for name, _ in others}
