"""YAML that somebody else wrote, judged as a stream of events before anything is built of it.

A kilobyte of aliases can stand for gigabytes, nesting for a stack that overflows, a megabyte for a
minute in the parser; so size, depth and the number of values are bounded first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from omegaconf._utils import get_yaml_loader

from ressl_plugin.utils.errors import UserError

LARGEST = 1 << 16  # bytes; a config has a few thousand
DEEPEST = 32
MOST = 20_000  # values, those of an alias as often as it is used


def read(path: Path, a_list: bool = False, words: bool = True) -> dict | list:
    """The mapping in a YAML or JSON file; {} for an empty one.

    Args:
        a_list: it may be a list, too.
        words: every key has to be a word.

    Raises:
        UserError: it cannot be read; it is not YAML, no mapping, too large or too deep, it refers
            to itself, has a tag, or a key that is no word.
    """
    text = _text(path)
    try:
        found = _json(path, text) if path.suffix == ".json" else _yaml(path, text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: int() of thousands of digits
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise UserError(f"{path}: not {kind}: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, (dict, list) if a_list else dict):
        kind = "a list" if isinstance(found, list) else f"the value {str(found)[:40]!r}"
        raise UserError(f"{path}: {kind}, not a mapping (key: value)")
    if words:
        _check_keys(path, found)
    return found


def _json(path: Path, text: str):
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", re.sub(r'"(\\.|[^"\\])*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise UserError(f"{path}: nested more than {DEEPEST} deep")
    return json.loads(text)


def _yaml(path: Path, text: str):
    _measure(path, text)
    return yaml.load(text, get_yaml_loader())  # a SafeLoader, of OmegaConf's numbers


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise UserError(f"{path}: more than {LARGEST >> 10} KiB; a config has a few")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None


def _measure(path: Path, text: str) -> None:
    """Depth and number of values with every alias written out.

    Raises:
        UserError: either is beyond its limit, an alias within its own anchor, a tag.
    """
    open_, sizes = [[0, 0, None]], {}  # of each open collection: values, height, anchor
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{path}: line {line}: tag {event.tag}: values have no tags here")
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append([1, 1, event.anchor])
            sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            values, height, anchor = open_.pop()
            sizes[anchor] = values, height
            _grow(open_[-1], values, height)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1, 0
            _grow(open_[-1], 1, 0)
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for *_, anchor in open_):
                raise UserError(f"{path}: line {line}: *{event.anchor} refers to itself")
            _grow(open_[-1], *sizes.get(event.anchor, (0, 0)))  # the parser knows no such anchor
        if len(open_) - 1 + open_[-1][1] > DEEPEST + 1:
            raise UserError(f"{path}: line {line}: nested more than {DEEPEST} deep")
        if open_[-1][0] > MOST:
            raise UserError(f"{path}: line {line}: more than {MOST} values, aliases written out")


def _grow(collection: list, values: int, height: int) -> None:
    collection[0] += values
    collection[1] = max(collection[1], height + 1)


def _check_keys(path: Path, node, place: str = "") -> None:
    """Every key is a word: YAML reads null, yes and 3 as something else."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(node, dict) and not (isinstance(key, str) and key.strip()):
            raise UserError(
                f"{path}: {place or 'at the top'}: the key {str(key)[:40]!r} is "
                f"{'empty' if isinstance(key, str) else 'no word; put it in quotes'}"
            )
        if isinstance(value, (dict, list)):
            _check_keys(path, value, f"{place}.{key}".lstrip("."))
