"""The only place that knows solo-learn's insides: one small interface over both its generations.

Importing this package costs nothing; the first use of a name below imports solo-learn, mends it
where it no longer runs (see `pypi.patches` and `patches`) and picks the file of its generation:

    GENERATION          "main" (the GitHub main branch) or "pypi" (1.0.2, the release on PyPI)
    BACKBONES           its backbones by name, factory(method, **kwargs), the very dict, too
    METHODS             the host's registry, the very dict that it holds
    MomentumBase        base class of momentum methods, MomentumBase(cfg), main's attribute names
    build_method(cfg)   any registered method from one config in main's schema
    build_backbone(cfg), view_transform(augmentation)
    LinearModel(backbone, cfg), KNN

and, for the files of this folder alone, the generation's `construct`, `pipeline` and DATALOADER.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path

from ressl_plugin.utils.errors import UserError

# the names of the interface, by the file of this folder that has them; GENERATION is main or pypi
_INTERFACE = {
    "GENERATION": (
        *("BACKBONES", "DATALOADER", "KNN", "METHODS", "LinearModel", "MomentumBase"),
        *("construct", "pipeline"),
    ),
    "building": ("build_backbone", "build_method", "view_transform"),
}

HOW_TO_INSTALL = (
    "`pip install --no-deps solo-learn==1.0.2`, "
    "or set SOLO_LEARN=<checkout of solo-learn's main branch>"
)


def _use_checkout(directory: str) -> None:
    """Put the checkout named by SOLO_LEARN first on the import path."""
    root = Path(directory).expanduser().resolve()
    if not (root / "solo" / "__init__.py").is_file():
        raise UserError(
            f"SOLO_LEARN={directory}: no solo-learn there (no solo/__init__.py); "
            "set it to a checkout of solo-learn, or unset it"
        )
    loaded = sys.modules.get("solo")
    if loaded is not None and Path(loaded.__file__).resolve().parent != root / "solo":
        raise UserError(
            f"SOLO_LEARN={directory}, but solo-learn is already imported from "
            f"{Path(loaded.__file__).parent}; import ressl_plugin first, or unset SOLO_LEARN"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()


def _generation() -> str:
    """Which solo-learn is importable, told by the files it has.

    Not by a version: the main branch has called itself 1.0.6 through several releases.

    Raises:
        UserError: there is none, or it is neither of the two known.
    """
    if os.environ.get("SOLO_LEARN"):
        _use_checkout(os.environ["SOLO_LEARN"])
    # find_spec of the top package alone does not run it: 1.0.2 cannot be imported unmended.
    spec = importlib.util.find_spec("solo")
    if spec is None:
        raise UserError(f"solo-learn is not installed; {HOW_TO_INSTALL}")
    roots = [Path(place) for place in spec.submodule_search_locations or []]
    if any((root / "data" / "pretrain_dataloader.py").is_file() for root in roots):
        return "main"
    if any((root / "utils" / "pretrain_dataloader.py").is_file() for root in roots):
        return "pypi"
    raise UserError(
        f"the package `solo` in {', '.join(map(str, roots))} is no solo-learn that is known here "
        f"(neither solo/data nor solo/utils has pretrain_dataloader.py); {HOW_TO_INSTALL}"
    )


def version() -> str:
    """solo-learn's version: of the release on PyPI, or the commit of a checkout.

    The main branch has called itself 1.0.6 for years.
    """
    from importlib import metadata

    spec = importlib.util.find_spec("solo")
    root = Path(next(iter(spec.submodule_search_locations or ["."]))).parent
    for found in metadata.distributions(name="solo-learn", path=[str(root)]):
        return found.version
    return _commit(root) or "a checkout"


def _commit(root: Path) -> str | None:
    """The first letters of the commit that a checkout is at, read without git."""
    head = root / ".git" / "HEAD"
    if not head.is_file():
        return None
    word = head.read_text().strip()
    ref = root / ".git" / word.removeprefix("ref: ")
    if word.startswith("ref: ") and ref.is_file():
        word = ref.read_text().strip()
    return word[:10] if len(word) == 40 else None


def __getattr__(name: str):
    if name != "GENERATION" and not any(name in names for names in _INTERFACE.values()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    generation = _generation()
    with warnings.catch_warnings():
        # The host and timm warn of each other's old and overwritten names, at every import.
        warnings.simplefilter("ignore")
        importlib.import_module(f"{__name__}.{generation}")
    globals()["GENERATION"] = generation
    for file, names in _INTERFACE.items():
        file = generation if file == "GENERATION" else file
        module = importlib.import_module(f"{__name__}.{file}")
        globals().update({name: getattr(module, name) for name in names})
    return globals()[name]
