"""What a value may be, said and judged in one place: `whole(1) | NULL`, `one_of("sgd", "lars")`."""

from __future__ import annotations

import difflib

from ressl_plugin.utils.errors import UserError

WIDEST, LONGEST_QUEUE = 2**16, 2**24
COLDEST = 1e-4  # temperature: below, softmax is a maximum and its gradient is 0 in float32


class Kind:
    """`text` says what a value may be, `call` judges it; `choices` are its words, if it has any."""

    def __init__(self, text: str, call, choices=()):
        self.text, self.call, self.choices = text, call, choices

    def __or__(self, other: Kind) -> Kind:
        either = lambda v: self.call(v) or other.call(v)
        return Kind(f"{self.text}, or {other.text}", either, (*self.choices, *other.choices))


def is_number(value) -> bool:
    """An int or a finite float that fits a machine word; no bool."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and abs(value) < 2**63  # False for nan, too


def number(least=None, most=None) -> Kind:
    """A finite number from `least` to `most`."""
    return Kind(f"a number{_bounds(least, most)}", lambda v: is_number(v) and _in(v, least, most))


def whole(least=None, most=None) -> Kind:
    """A whole number from `least` to `most`."""
    judge = lambda v: is_number(v) and isinstance(v, int) and _in(v, least, most)
    return Kind(f"a whole number{_bounds(least, most)}", judge)


def one_of(*choices) -> Kind:
    """One of `choices`, of its very type."""
    judge = lambda v: any(type(v) is type(choice) and v == choice for choice in choices)
    return Kind(f"one of {', '.join(map(str, choices))}", judge, choices)


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """A list, not empty, of `length` items if that is given."""
    judge = lambda v: (
        isinstance(v, (list, tuple))
        and (len(v) == length if length else 0 < len(v) <= 64)
        and all(map(kind.call, v))
    )
    return Kind(f"a list of {length or 'some'}, each {kind.text}", judge)


def _bounds(least, most) -> str:
    texts = [f">= {least}" if least is not None else "", f"<= {most}" if most is not None else ""]
    return f" {' and '.join(filter(None, texts))}".rstrip()


def _in(value, least, most) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NULL = Kind("null", lambda v: v is None)
WIDTH = whole(1, WIDEST)


def judged(key: str, value, kind: Kind, where: str = "config: ") -> None:
    """Refuse a value that is not of this kind; `where` opens the message."""
    if not kind.call(value):
        hint = nearest(value, map(str, kind.choices))
        raise UserError(f"{where}{key}={repr(value)[:80]}: must be {kind.text}{hint}")


def nearest(key: str, known) -> str:
    """`; did you mean …?`, or nothing."""
    near = difflib.get_close_matches(str(key)[:100], list(known), 1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
