"""The files that a config is composed of, by its list of `defaults` and by overrides of groups."""

from __future__ import annotations

import os
from pathlib import Path

from ressl_plugin.config import yaml_files
from ressl_plugin.utils.errors import UserError


def check(path: Path, overrides: list[str]) -> None:
    """Every file that Hydra will read, before it does: the config and what its defaults name.

    Raises:
        UserError: yaml_files.read, a list of defaults that is none, a file that includes itself.
    """
    root = path.parent
    _check_file(path, root, ())
    for override in overrides:
        group, _, choice = override.partition("=")
        if (file := _named(root, root, group, choice)) is not None:
            _check_file(file, root, ())


def _check_file(file: Path, root: Path, within: tuple) -> None:
    if file in within:
        raise UserError(f"{file}: it includes itself, by its `defaults`")
    top = not within
    found = yaml_files.read(file, a_list=not top)  # a group's option, such as the views, may be one
    defaults = found.get("defaults", []) if isinstance(found, dict) else []
    if not isinstance(defaults, list):
        raise UserError(f"{file}: defaults={str(defaults)[:40]!r}: a list of files is expected")
    for entry in defaults:
        group, choices = next(iter(entry.items())) if isinstance(entry, dict) else ("", entry)
        choices = choices if isinstance(choices, list) else [choices]
        if (isinstance(entry, dict) and len(entry) != 1) or not all(
            choice is None or isinstance(choice, str) for choice in choices
        ):
            raise UserError(
                f"{file}: defaults: {str(entry)[:40]!r}: a file's name, or group: name, is expected"
            )
        for choice in choices:
            if (named := _named(file.parent, root, group, choice)) is not None:
                _check_file(named, root, (*within, file))


def _named(folder: Path, root: Path, group: str, choice: str | None) -> Path | None:
    """The file of an entry of the defaults, or of an override; None where there is none here."""
    group = group.split()[-1].partition("@")[0] if group.strip() else ""
    if not choice or choice == "_self_":
        return None
    place = root if group.startswith("/") or choice.startswith("/") else folder
    name = choice.partition("@")[0].strip("/").removesuffix(".yaml")
    file = place / group.strip("/+") / f"{name}.yaml"
    return file if os.path.isfile(file) else None  # False, too, for a name that cannot be
