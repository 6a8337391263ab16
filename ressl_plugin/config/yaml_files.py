"""YAML that somebody else wrote: a mapping of bounded size, or one line about it.

A kilobyte of aliases can stand for gigabytes, and a megabyte takes the parser a minute.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from omegaconf._utils import get_yaml_loader

from ressl_plugin.utils.errors import UserError

LARGEST = 1 << 16  # bytes; a config has a few thousand
DEEPEST = 32
MOST = 20_000  # values, those of an alias as often as it is used


def read(path: Path, words: bool = True) -> dict:
    """The mapping in a YAML or JSON file; {} for an empty one.

    Args:
        words: every key has to be a word.

    Raises:
        UserError: it cannot be read; it is not YAML, no mapping, too large or too deep; a key is no
            word.
    """
    kind = "JSON" if path.suffix == ".json" else "YAML"
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path}: more than {LARGEST >> 10} KiB; a config has a few")
        text = content.decode()
        # a SafeLoader, of OmegaConf's numbers
        found = json.loads(text) if kind == "JSON" else yaml.load(text, get_yaml_loader())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # int() of thousands of digits
        raise UserError(f"{path}: not {kind}: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        what = "a list" if isinstance(found, list) else f"the value {str(found)[:40]!r}"
        raise UserError(f"{path}: {what}, not a mapping (key: value)")
    _check(path, found, words)
    return found


def _check(path: Path, found: dict, words: bool) -> None:
    """Bounds, and that every key is a word: YAML reads null, yes and 3 as something else."""
    values, open_ = 0, [("", found, 1)]
    while open_:
        place, node, depth = open_.pop()
        values += len(node)
        if depth > DEEPEST:
            raise UserError(f"{path}: nested more than {DEEPEST} deep")
        if values > MOST:
            raise UserError(f"{path}: more than {MOST} values, aliases written out")
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if words and isinstance(node, dict) and not (isinstance(key, str) and key.strip()):
                raise UserError(
                    f"{path}: {place or 'at the top'}: the key {str(key)[:40]!r} is "
                    f"{'empty' if isinstance(key, str) else 'no word; put it in quotes'}"
                )
            if isinstance(value, (dict, list)):
                open_.append((f"{place}.{key}".lstrip("."), value, depth + 1))
