"""Linear evaluation: the fast probe, few labels, and the trained protocol."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ressl_plugin.errors import UserError
from ressl_plugin.evaluate.linear import (
    PROTOCOLS,
    Protocol,
    few_labels,
    probe,
    stratified_draw,
    topk_accuracy,
)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    return x[:1400], y[:1400], x[1400:], y[1400:]


def test_protocols_are_the_papers():
    small, imagenet = PROTOCOLS["small"], PROTOCOLS["imagenet"]
    assert (small.lr, small.epochs, small.momentum, small.weight_decay) == (30, 100, 0.9, 0)
    factors = [small.factor(epoch * 6 + 5, 6) for epoch in (0, 59, 60, 79, 80, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert imagenet.lr == 0.3 and imagenet.factor(0, 6) == 1
    assert imagenet.factor(300, 6) == pytest.approx(0.5)
    assert imagenet.factor(599, 6) < 1e-5


def test_probe_learns_and_repeats(digits):
    first, again = (probe(*digits, "small", seed=3) for _ in range(2))
    assert first == again
    assert first["top1"] > 90 and first["top5"] > 98
    reference = LogisticRegression(C=1e4, max_iter=5000).fit(digits[0], digits[1])
    assert first["top1"] == pytest.approx(100 * reference.score(digits[2], digits[3]), abs=2.5)


def test_probe_is_the_plain_update_written_out(digits):
    """One epoch of one batch against the gradient by hand."""
    x, y = digits[0][:50], digits[1][:50]
    one = Protocol("one", lr=0.5, epochs=1, batch_size=64, steps=(9,))
    found = probe(x, y, x, y, one, seed=5)
    generator = torch.Generator().manual_seed(5)
    bound = 1 / 8  # sqrt(64 features)
    weight = torch.empty(10, 64).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(10).uniform_(-bound, bound, generator=generator)
    p = (x @ weight.t() + bias).softmax(1)
    loss = -p[torch.arange(50), y].log().mean().item()
    error = (p - torch.eye(10)[y]) / 50
    logits = x @ (weight - 0.5 * error.t() @ x).t() + bias - 0.5 * error.sum(0)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["top1"] == pytest.approx(100 * (logits.argmax(1) == y).float().mean().item())


def test_topk_accuracy_with_few_classes():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert topk_accuracy(logits, torch.tensor([0, 0])) == [50.0, 100.0]


def test_few_labels_is_mean_and_spread_over_draws(digits):
    found = few_labels(*digits, per_class=5, draws=10, seed=7)
    assert found["seeds"] == list(range(7, 17)) and found["n"] == 50
    assert len(set(found["values"])) > 1
    assert found["mean"] == pytest.approx(np.mean(found["values"]))
    assert found["spread"] == pytest.approx(np.std(found["values"], ddof=1))
    assert 75 < found["mean"] < 95
    assert few_labels(*digits, per_class=5, draws=2, seed=7)["values"] == found["values"][:2]
    everything = few_labels(*digits, per_class="all")
    assert everything["spread"] is None and everything["mean"] > found["mean"]
    assert few_labels(*digits, per_class=1, draws=3)["mean"] < found["mean"]


def test_few_labels_does_not_depend_on_the_features_scale(digits):
    train_x, train_y, test_x, test_y = digits
    plain = few_labels(*digits, per_class=1, draws=3)
    scaled = few_labels(train_x * 1e3, train_y, test_x * 1e3, test_y, per_class=1, draws=3)
    assert plain["values"] == pytest.approx(scaled["values"], abs=0.3)


def test_stratified_draw():
    targets = np.repeat([3, 7, 9], [5, 8, 2])
    rows = stratified_draw(targets, 2, seed=1)
    assert sorted(targets[rows]) == [3, 3, 7, 7, 9, 9] and len(set(rows)) == 6
    assert (rows == stratified_draw(targets, 2, seed=1)).all()
    draws = {tuple(stratified_draw(targets, 2, seed)) for seed in range(5)}
    assert len(draws) > 1
    assert (stratified_draw(targets, "all", 0) == np.arange(15)).all()
    with pytest.raises(UserError, match="class 9 has 2 images, 3 labels"):
        stratified_draw(targets, 3, seed=1)
    with pytest.raises(UserError, match="0"):
        stratified_draw(targets, 0, seed=1)


def test_mistakes_are_named(digits):
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(UserError, match="'large' unknown; one of small, imagenet"):
        probe(*digits, "large")
    with pytest.raises(UserError, match="no labels"):
        probe(train_x, torch.full_like(train_y, -1), test_x, test_y)
    with pytest.raises(UserError, match="loss is"):
        probe(train_x * 1e30, train_y, test_x, test_y)
