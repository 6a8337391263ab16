"""The online kNN over ranks is the host's metric on all images, at a share of its memory."""

import pytest
import torch
from helpers import make_config
from ranks import on_ranks

from ressl_plugin import host
from ressl_plugin.method.ressl import ReSSL, Seen
from ressl_plugin.utils import distributed

N, M, CLASSES = 90, 41, 10  # training and clean images; odd, so that ranks hold unequal shares


def images(distance):
    """Clustered features, in bfloat16 as an autocast backbone gives them; some unlabelled."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 6, generator=g)
    labels = torch.randint(CLASSES, (N + M,), generator=g)
    feats = (centres[labels] + torch.randn(N + M, 6, generator=g)).bfloat16()
    labels[::7] = -1
    return feats, labels, distance


def by_the_metric(feats, labels, distance):
    knn = host.KNN(k=5, distance_fx=distance)
    knn.update(feats[:N], labels[:N], feats[N:], labels[N:])
    return knn.compute()


def online(feats, labels, distance):
    """What this rank logs, fed with its share in batches of 8."""
    changes = {"knn_eval__k": 5, "knn_eval__enabled": True, "knn_eval__distance_func": distance}
    model = ReSSL(make_config(**changes))
    rank, world = distributed.rank(), distributed.world()
    for bank, part in ((model.online._bank, slice(N)), (model.online._clean, slice(N, None))):
        own = [t[part][rank::world].split(8) for t in (feats, labels)]
        bank.extend(zip(*own))
    found = model.online.validated(model)
    assert len(model.online._bank) == 1 and not model.online._clean
    return found["val_knn_acc1"], found["val_knn_acc5"]


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_online_knn_is_the_metrics(distance):
    expected = by_the_metric(*images(distance))
    assert 20 < expected[0] < expected[1] < 100
    assert online(*images(distance)) == expected


def test_online_knn_of_two_ranks_is_one_processs(tmp_path):
    given = images("cosine")
    assert on_ranks(2, online, tmp_path, *given, group=True) == [by_the_metric(*given)] * 2


def test_nothing_labelled_has_no_accuracy():
    feats, labels, _ = images("cosine")
    assert online(feats, torch.full_like(labels, -1), "cosine") == (-1, -1)


def test_features_wait_in_half_precision_and_hold_no_batch():
    """Of a multi-crop batch only the first crop's features, and no graph."""
    model = ReSSL(make_config(knn_eval__enabled=True))
    model.online._knn_epoch = lambda trainer, module: True
    both = torch.randn(16, model.features_dim, requires_grad=True) * 2
    for dtype in (torch.bfloat16, torch.float32):
        feats, targets = both.to(dtype).chunk(2)[0], torch.arange(8)
        with torch.autocast("cpu", torch.bfloat16):
            _, classes = model.classify(feats, None, targets)
        none, z = torch.zeros(()), torch.ones(8, 16)
        model.seen = Seen(none, none, z, z[None], feats, classes, targets)
        model.online.on_train_batch_end(None, model, None, None, 0)
        held, _ = model.online._bank.pop()
        assert held.dtype == dtype and not held.requires_grad
        assert held.untyped_storage().nbytes() == held.numel() * held.element_size()
