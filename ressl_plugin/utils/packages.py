"""Packages that are extras of the plugin: they may be missing."""

from __future__ import annotations

import importlib.util

from ressl_plugin.utils.errors import UserError


def need(package: str, extra: str, what: str) -> None:
    """Refuse to go on without a package that `what` needs and an extra of the plugin installs."""
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{what} needs {package}, which is not installed: pip install 'ressl_plugin[{extra}]'"
        )
