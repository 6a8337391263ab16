"""Weighted kNN against the host, a brute-force reference, and scikit-learn."""

import importlib.util
import inspect
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from ressl_plugin import host
from ressl_plugin.evaluate.knn import default_cell, sweep
from ressl_plugin.utils.errors import UserError


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    # noise makes the task hard enough for the cells to differ, and all distances distinct
    x = data.data / 16 + np.random.default_rng(0).normal(size=data.data.shape) * 0.6
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(data.target)
    return x[:600], y[:600], x[600:800], y[600:800]


def brute_force(train_x, train_y, test_x, test_y, k, t, distance):
    """Loops in float64: no line in common with what is tested."""
    train, test = train_x.double().numpy(), test_x.double().numpy()
    top1 = top5 = 0
    for row, label in zip(test, test_y.tolist()):
        scored = []
        for other, target in zip(train, train_y.tolist()):
            if distance == "cosine":
                value = row @ other / np.linalg.norm(row) / np.linalg.norm(other)
            else:
                value = 1 / (np.linalg.norm(row - other) + 1e-5)
            scored.append((value, target))
        votes = [0.0] * 10
        for value, target in sorted(scored, reverse=True)[:k]:
            votes[target] += math.exp(value / t) if distance == "cosine" else value
        ranked = sorted(range(10), key=lambda c: -votes[c])
        top1 += label == ranked[0]
        top5 += label in ranked[: min(5, k)]
    return 100 * top1 / len(test), 100 * top5 / len(test)


@pytest.mark.parametrize(
    "distance,k,t", [("cosine", 1, 0.07), ("cosine", 20, 0.07), ("cosine", 50, 1.0),
                     ("euclidean", 5, None), ("euclidean", 20, None)]
)  # fmt: skip
def test_sweep_equals_brute_force(digits, distance, k, t):
    train_x, train_y, test_x, test_y = digits
    small = (train_x[:200], train_y[:200], test_x[:60], test_y[:60])
    found = sweep(*small, ks=[k], temperatures=[t or 1], distance=distance)["records"]
    cell = next(
        r for r in found if r["distance"] == distance and r["k"] == k and r["temperature"] == t
    )
    expected = brute_force(*small, k, t, distance)
    assert (cell["top1"], cell["top5"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("t", [0.01, 0.002])
def test_small_temperatures_equal_the_vote_in_float64(digits, t):
    """exp(cosine / T) would be infinite in float32: all classes with a neighbour tie."""
    x, y = digits[0] + 3, digits[1]  # all cosines near 1
    small = (x[:200], y[:200], x[200:260], y[200:260])
    (cell,) = sweep(*small, ks=[20], temperatures=[t])["records"]
    expected = brute_force(*small, 20, t, "cosine")
    assert (cell["top1"], cell["top5"]) == pytest.approx(expected, abs=1e-6)


def test_at_a_vanishing_temperature_the_nearest_decides(digits):
    nearest, vanishing = (sweep(*digits, ks=[k], temperatures=[t])["best"]["top1"]
                          for k, t in ((1, 1.0), (20, 1e-320)))  # fmt: skip
    assert nearest == vanishing


@pytest.fixture(scope="module")
def hosts_own():
    """The host's class with its own arithmetic, read anew: what is imported is mended."""
    source = inspect.getsourcefile(host.KNN)
    spec = importlib.util.spec_from_file_location("unmended_knn", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = module.WeightedKNNClassifier
    own.__init__ = host.KNN.__init__  # its own fails on today's torchmetrics

    def accuracies(parts, k, temperature, distance):
        metric = own(k=k, T=temperature, distance_fx=distance)
        train_x, train_y, test_x, test_y = parts
        if distance == "cosine":  # 1.0.2 leaves it to its caller
            train_x, test_x = (torch.nn.functional.normalize(x) for x in (train_x, test_x))
        metric.update(train_x, train_y, test_x, test_y)
        return tuple(map(float, metric.compute()))

    return accuracies


def test_every_cell_of_the_sweep_equals_the_hosts_classifier(digits, hosts_own):
    cells = (1, 5, 20, 100), (0.02, 0.07, 1.0)
    records = [r for d in ("cosine", "euclidean") for r in sweep(*digits, *cells, d)["records"]]
    assert len(records) == 4 * 3 + 4
    for r in records:
        top = hosts_own(digits, r["k"], r["temperature"] or 0.07, r["distance"])
        assert (r["top1"], r["top5"]) == pytest.approx(top, abs=1e-6), r
    assert len({r["top1"] for r in records}) > 5  # the cells do differ


@pytest.mark.parametrize("k", [1, 5, 30])
def test_euclidean_equals_scikit_learn(digits, k):
    train_x, train_y, test_x, test_y = digits
    model = KNeighborsClassifier(k, weights=lambda d: 1 / (d + 1e-5), algorithm="brute")
    model.fit(train_x.double().numpy(), train_y.numpy())
    expected = 100 * model.score(test_x.double().numpy(), test_y.numpy())
    found = sweep(*digits, ks=[k], distance="euclidean")["records"]
    cell = next(r for r in found if r["distance"] == "euclidean" and r["k"] == k)
    assert cell["top1"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_online_equals_offline(digits, distance):
    train_x, train_y, test_x, test_y = digits
    metric = host.KNN(k=20, T=0.07, distance_fx=distance)
    for x, y in zip(train_x.split(37), train_y.split(37)):
        metric.update(train_features=x, train_targets=y)
    for x, y in zip(test_x.split(23), test_y.split(23)):
        metric.update(test_features=x, test_targets=y)
    offline = sweep(*digits, distance=distance)["records"]
    cell = next(
        r for r in offline if r["k"] == 20 and r["temperature"] in (None, 0.07)
        and r["distance"] == distance
    )  # fmt: skip
    assert tuple(map(float, metric.compute())) == pytest.approx((cell["top1"], cell["top5"]))


def test_k_is_bounded(digits):
    train_x, train_y, test_x, test_y = digits
    found = sweep(train_x[:12], train_y[:12], test_x, test_y)
    assert max(r["k"] for r in found["records"]) == 12
    cell = default_cell(train_x[:12], train_y[:12], test_x, test_y)
    assert (cell["k"], cell["temperature"]) == (12, 0.07)
    assert found["best"]["top1"] == max(r["top1"] for r in found["records"])
    only = sweep(*digits, distance="euclidean")
    assert {r["distance"] for r in only["records"]} == {only["best"]["distance"]} == {"euclidean"}


def test_only_what_is_asked_for(digits):
    (record,) = sweep(*digits, ks=[5], temperatures=[0.1])["records"]
    assert (record["k"], record["temperature"]) == (5, 0.1)
    (record,) = sweep(*digits, ks=[5], distance="euclidean")["records"]
    assert (record["k"], record["distance"]) == (5, "euclidean")


def test_a_test_set_with_fewer_classes_than_training(digits):
    train_x, train_y, test_x, test_y = digits
    keep = test_y < 4
    found = default_cell(train_x, train_y, test_x[keep], test_y[keep])
    assert found["top1"] == pytest.approx(
        brute_force(train_x, train_y, test_x[keep], test_y[keep], 20, 0.07, "cosine")[0], abs=1e-6
    )


def test_mistakes_are_named(digits):
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(UserError, match="manhattan"):
        sweep(*digits, distance="manhattan")
    with pytest.raises(UserError, match="no labels"):
        sweep(train_x, torch.full_like(train_y, -1), test_x, test_y)
    with pytest.raises(UserError, match="k = 0"):
        sweep(*digits, ks=[0])
    for t in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=f"temperature = {t}; it must be finite and above 0"):
            sweep(*digits, temperatures=[0.1, t])
    with pytest.raises(UserError, match="600 training features and 200 labels"):
        sweep(train_x, test_y, test_x, test_y)
