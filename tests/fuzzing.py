"""What the fuzz tests make their configs and their files of."""

import copy
import math
import random

import torch
import yaml
from hydra.errors import HydraException
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from torch import nn

LIBRARIES = (
    OmegaConfBaseException, HydraException, yaml.YAMLError, SafetensorError, OSError, ValueError,
)  # fmt: skip

FEW, MANY = 150, 2500


def examples(count):
    skip = list(HealthCheck)
    return settings(
        max_examples=count, deadline=None, database=None, derandomize=True,
        suppress_health_check=skip,
    )  # fmt: skip


def from_a_check(error) -> bool:
    """Whether a UserError is one line and no bug of ours in disguise.

    A check raised it, or it passes on what a library says of a file or of a value: an exception of
    the kinds that libraries raise for that, out of a library's own line. What builds a backbone may
    raise anything.
    """
    assert str(error) and len(str(error).splitlines()) == 1, f"not one line: {error}"
    cause = error
    while isinstance(cause, type(error)):
        cause = cause.__cause__ or cause.__context__
    if cause is None or isinstance(cause, OSError | UnicodeDecodeError):  # of a file
        return True
    place = cause.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    ours = place.tb_frame.f_globals.get("__name__", "").startswith("ressl_plugin")
    of_a_backbone = str(error).startswith("config: backbone.kwargs")
    return not ours and (of_a_backbone or isinstance(cause, LIBRARIES))


class Tiny(nn.Sequential):
    """As much of a ResNet as a stem asks for: a method is made of it in a millisecond."""

    num_features = 8

    def __init__(self, width: int = 8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def tiny(method=None, **kwargs):
    """Like a library's factory: what it does not take is refused in a line that is not ours."""
    return Tiny(**kwargs)


NUMBERS = [
    0, 1, -1, 2, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.0, 0.5, 1e-300, 1e308, -1e308,
    math.inf, -math.inf, math.nan,
]  # fmt: skip
WORDS = [
    "", " ", "auto", "ressl", "???", "${optimizer.lr}", "${nothing}", "${", "${oc.env:HOME}", "-1",
    "1e-3", "nan", "true", "null", "0,1", "16-mixed", "../../etc", "\0", "é" * 40, "\n", "a.b", "[",
    "{", "timm:resnet18", "none",
]  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS),
    st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=4),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.one_of(st.sampled_from(["prob", "name", "a"]), st.integers(), st.text(max_size=4)),
        inner, max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "repeat", "head"]),
        st.integers(0, 2**16), st.binary(min_size=1, max_size=6),
    ),
    min_size=1, max_size=6,
)  # fmt: skip


def edited(content, todo):
    out = bytearray(content)
    for what, where, piece in todo:
        at = where % max(1, len(out))
        if what == "flip" and out:
            out[at] ^= piece[0] | 1
        elif what == "set":
            out[at : at + len(piece)] = piece
        elif what == "cut":
            del out[at:]
        elif what == "insert":
            out[at:at] = piece
        elif what == "repeat":
            out[at:at] = out[at : at + 64]
        else:  # most of what a decoder believes stands in the first bytes
            out[where % 40 : where % 40 + len(piece)] = piece
    return bytes(out)


PLAIN = [None, "x", -1, 2.5, math.nan, 10**30, True, [], {}, [1], {"x": 1}, torch.ones(3)]
OF_TENSORS = [
    lambda t: t[:1], lambda t: t.reshape(-1), lambda t: t.long(), lambda t: t.double(),
    lambda t: t.half(), lambda t: t.bool(), lambda t: t * math.nan, lambda t: -t,
    lambda t: t.new_zeros(0), lambda t: t[None], lambda t: t.to(torch.complex64),
    lambda t: t.to_sparse(), lambda t: t.mT if t.dim() > 1 else t.expand(2, *t.shape),
]  # fmt: skip
OF_NUMBERS = [lambda n: n + 1, lambda n: -n, lambda n: n * 1000, float, str]
OF_LISTS = [lambda x: [*x, *x], lambda x: x[1:], lambda x: x[::-1], lambda x: [*x, None], tuple]


def places(value, path=()):
    """Every key of nested dicts and lists, the large ones (weights) by their first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    few = path[:1] in (("state_dict",), ("ressl_config",))
    for key, inner in list(items)[: 3 if few else 40]:
        yield (*path, key)
        if isinstance(inner, (dict, list, tuple)) and len(path) < 9:
            yield from places(inner, (*path, key))


def mutated(state, number):
    """(where, a copy with another value there, or none), drawn evenly from the depths."""
    draw = random.Random(number)
    found = list(places(state))
    depth = draw.choice(sorted({len(p) for p in found}))
    where = draw.choice([p for p in found if len(p) == depth])
    parent = changed = copy.copy(state)
    for key in where[:-1]:  # what is not on the way there is shared with `state`
        inner = parent[key]
        parent[key] = list(inner) if isinstance(inner, tuple) else copy.copy(inner)
        parent = parent[key]
    way = draw.random()
    if way < 0.2:
        del parent[where[-1]]
        return (*where, "deleted"), changed
    old = parent[where[-1]]
    kinds = {torch.Tensor: OF_TENSORS, (list, tuple): OF_LISTS, (int, float): OF_NUMBERS}
    alike = next((ways for kind, ways in kinds.items() if isinstance(old, kind)), None)
    new = draw.choice(alike)(old) if alike and way < 0.7 else draw.choice(PLAIN)
    parent[where[-1]] = new
    return (*where, new), changed
