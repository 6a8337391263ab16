"""A table of places and kinds, and what it says of a value."""

import pytest
import torch

from ressl_plugin.config.kinds import FLAG, NULL, whole
from ressl_plugin.run.structure import TENSOR, TEXT, Maybe, fault

COUNTS = {"ready": whole(0), "done?": whole(0), "*progress": [FLAG], "pair?": (TEXT, TENSOR)}
GOOD = {"ready": 1, "of_others": object(), "epoch_progress": [True, False], "progress": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"done": 2, "pair": ["a", torch.ones(1)]}, None),
        ({"dones": "of others", "pairs": 1}, None),  # names alike
        ({"ready": -1}, "it.ready is -1, it must be a whole number >= 0"),
        ({"ready": None}, "it.ready is nothing, it must be"),
        ({"ready": 10**9999}, "it.ready is a number without end"),
        ({"done": "x" * 999}, f"it.done is '{79 * 'x'}, it must be"),
        ({"epoch_progress": [True, 1]}, "it.epoch_progress.1 is 1, it must be true or false"),
        ({"epoch_progress": {}}, "it.epoch_progress is a dict, it must be a list"),
        ({"pair": ["a"]}, "the length of it.pair is 1, it must be 2"),
        ({"pair": ["a", 1.5]}, "it.pair.1 is 1.5, it must be a tensor"),
        ({5: 1}, "a key of it is 5, it must be text"),
    ],
)
def test_the_first_place_that_is_another(change, message):
    found = fault({**GOOD, **change}, COUNTS, "it")
    assert found is None if message is None else found.startswith(message), found


def test_what_is_absent_or_nothing():
    assert fault({}, COUNTS) == "ready is nothing, it must be there"
    assert fault(None, COUNTS, "it") == "it is nothing, it must be a mapping"
    assert fault(None, Maybe(COUNTS)) is None and fault(None, TEXT | NULL) is None
    assert fault({}, Maybe(COUNTS)) == "ready is nothing, it must be there"
