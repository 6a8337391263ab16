"""The vote of neighbours; those who use it are held to brute force and to the host elsewhere."""

import pytest
import torch
import torch.nn.functional as F

from ressl_plugin.utils.knn import labelled, nearest, vote


@pytest.fixture
def features():
    return torch.randn(300, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_chunk_is_no_other_than_the_whole(features, distance):
    """Rows of `test` in chunks of 64 find what all at once find."""
    labels = torch.arange(300) % 7
    near, found = nearest(features, labels, features, 9, distance, pairs=1)
    whole, whole_found = nearest(features, labels, features, 9, distance)
    torch.testing.assert_close(near, whole)
    assert torch.equal(found, whole_found)


def test_the_features_stay_as_they_were(features):
    train, half = features.clone(), features.half()
    nearest(train, torch.zeros(300).long(), F.normalize(train), 5)
    assert torch.equal(train, features)
    near, _ = nearest(half, torch.zeros(300).long(), half, 5)
    assert torch.equal(half, features.half()) and near.dtype == torch.float32


def test_unlabelled_rows_are_left_out(features):
    labels = torch.arange(300) % 3 - 1
    kept, classes = labelled(features, labels)
    assert torch.equal(kept, features[labels >= 0]) and classes.min() == 0
    assert labelled(features, labels.abs())[0] is features


def test_weights_decide_a_vote():
    """One near neighbour outvotes two far ones at a low temperature only."""
    near, labels = torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[0, 1, 1]])
    assert vote(near, labels, torch.tensor([0]), 2, temperature=0.07) == (100, 100)
    assert vote(near, labels, torch.tensor([0]), 2, temperature=10) == (0, 100)
    assert vote(near, labels, torch.tensor([0]), 2, temperature=None) == (0, 100)
