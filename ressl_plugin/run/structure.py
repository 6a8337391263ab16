"""What is stored, as a table of its places and kinds, and the one walk that judges a value by it.

A structure is one of

    Kind              of `config.kinds`: whole(0), FLAG, TENSOR, ...
    [structure]       a list of such
    (structure, ...)  a list of so many, each by its own
    {key: structure}  a mapping by words; "key?" may be absent, and "*progress" stands for the keys
                      that are not named and end so; a key of no place is left to others
    Maybe(structure)  nothing is right, too
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ressl_plugin.config.kinds import Kind, is_number

TEXT = Kind("text", lambda v: isinstance(v, str) and v.isprintable())
NUMBER = Kind("a finite number", is_number)
TENSOR = Kind("a tensor", lambda v: isinstance(v, Tensor))


@dataclass(frozen=True)
class Maybe:
    """See above."""

    structure: object


def fault(value, structure, where: str = "") -> str | None:
    """The first place in which `value` is another: "epoch is 'x', it must be a whole number"."""
    if isinstance(structure, Maybe):
        return None if value is None else fault(value, structure.structure, where)
    if isinstance(structure, Kind):
        return None if structure.call(value) else _other(where, value, structure.text)
    if isinstance(structure, dict):
        return _fault_of_mapping(value, structure, where)
    if not isinstance(value, (list, tuple)):
        return _other(where, value, "a list")
    if isinstance(structure, tuple) and len(value) != len(structure):
        return _other(f"the length of {where}", len(value), str(len(structure)))
    each = structure if isinstance(structure, tuple) else structure * len(value)
    faults = (fault(one, of, f"{where}.{i}") for i, (one, of) in enumerate(zip(value, each)))
    return next(filter(None, faults), None)


def _fault_of_mapping(value, structure: dict, where: str) -> str | None:
    if not isinstance(value, dict):
        return _other(where, value, "a mapping")
    for key in structure:
        if not key.startswith("*") and not key.endswith("?") and key not in value:
            return _other(_place(where, key), None, "there")
    for key, inner in value.items():
        if not isinstance(key, str):
            return _other(f"a key of {where or 'it'}", key, "text")
        of = _named(key, structure)
        if of is not None and (found := fault(inner, of, _place(where, key))):
            return found
    return None


def _named(key: str, structure: dict):
    """The structure of what stands at `key`; None for what is left alone."""
    for name in (key, f"{key}?"):
        if name in structure:
            return structure[name]
    ends = ((name[1:], of) for name, of in structure.items() if name.startswith("*"))
    return next((of for end, of in ends if key.endswith(end)), None)


def _place(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _other(where: str, value, what: str) -> str:
    if isinstance(value, int) and value.bit_length() > 512:
        shown = "a number without end"  # Python refuses to print it
    elif isinstance(value, (int, float, str)):
        shown = repr(value)[:80]
    else:
        shown = "nothing" if value is None else f"a {type(value).__name__}"
    return f"{where} is {shown}, it must be {what}"
