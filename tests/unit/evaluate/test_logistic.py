"""The fast probe is scikit-learn's logistic regression, at its optimum."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ressl_plugin.evaluate import logistic
from ressl_plugin.utils.errors import UserError

SOLVER = "newton-cg"  # multinomial, and to its end, in every version of scikit-learn


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[order])
    return x[:1400], y[:1400], x[1400:], y[1400:]


@pytest.fixture(scope="module")
def few_digits(digits):
    """Half of them to learn from, for scikit-learn's solver, which takes its time."""
    x, y, *test = digits
    return x[:700], y[:700], *test


@pytest.fixture(scope="module")
def correlated():
    """Such as a network gives: nearly low rank, an offset, all scales, a dead unit."""
    g = np.random.default_rng(1)
    y = g.integers(0, 7, 1500)
    hidden = g.normal(size=(7, 12))[y] * 0.8 + g.normal(size=(1500, 12))
    x = hidden @ g.normal(size=(12, 40)) + 0.05 * g.normal(size=(1500, 40)) + 5
    x = np.maximum(x * 10 ** g.uniform(-3, 3, 40), 0)
    x[:, 3] = 0.1
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return x[:1000], y[:1000], x[1000:], y[1000:]


def reference(parts, penalties, seed=0):
    """{l2: accuracy in %} of the penalties that are best on the same split, in float64."""
    x, y, test, test_y = (np.asarray(part) for part in parts)
    scaler = StandardScaler().fit(x.astype(np.float64))
    x, test = (scaler.transform(part.astype(np.float64)) for part in (x, test))

    def model(l2, x, y):
        exact = LogisticRegression(C=1 / (l2 * len(x)), solver=SOLVER, tol=1e-6, max_iter=1000)
        return exact.fit(x, y)

    kept, held = (rows.numpy() for rows in logistic.split(parts[1], seed))
    tried = {l2: model(l2, x[kept], y[kept]).score(x[held], y[held]) for l2 in penalties}
    best = {l2 for l2, score in tried.items() if score == max(tried.values())}
    return {l2: 100 * model(l2, x, y).score(test, test_y) for l2 in best}


@pytest.mark.parametrize(("features", "seed"), [("few_digits", 0), ("correlated", 1)])
def test_the_choice_and_the_accuracy_are_scikit_learns(features, seed, request):
    parts = request.getfixturevalue(features)
    penalties = logistic.PENALTIES[::3]
    found = logistic.probe(*parts, penalties, seed)
    accuracies = reference(parts, penalties, seed)
    assert found["l2"] in accuracies
    assert found["top1"] == pytest.approx(accuracies[found["l2"]], abs=0.1)


def test_the_penalties_far_behind_the_best_are_not_tried(digits, monkeypatch):
    tried, fit = [], logistic.fit

    def counted(x, y, classes, penalties):
        for l2, found in zip(penalties, fit(x, y, classes, penalties)):
            tried.append(l2)
            yield found

    monkeypatch.setattr(logistic, "fit", counted)
    l2 = logistic.probe(*digits)["l2"]
    assert tried.pop() == l2  # the last fit, on all images
    after = logistic.PENALTIES.index(l2) + 1 + logistic.PATIENCE
    assert tuple(tried) == logistic.PENALTIES[:after] and after < len(logistic.PENALTIES)


@pytest.mark.parametrize("features", ["few_digits", "correlated"])
@pytest.mark.parametrize("l2", [1.0, 1e-4])
def test_it_is_the_optimum_that_newtons_method_finds(features, l2, request):
    x, y, *_ = request.getfixturevalue(features)
    x, _ = logistic._principal(x.clone(), x[:1].clone())
    weight, bias, loss = next(logistic.fit(x, y, len(y.unique()), [l2]))
    rows = x.double().numpy()
    exact = LogisticRegression(C=1 / (l2 * len(x)), solver=SOLVER, tol=1e-9, max_iter=1000)
    p = exact.fit(rows, y.numpy()).predict_proba(rows)
    ours = (x @ weight + bias).softmax(1)
    assert abs(ours - torch.tensor(p)).max() < 5e-3
    assert loss == pytest.approx(F.cross_entropy(x @ weight + bias, y).item(), abs=1e-6)
    # Of loss and penalty together, which are flat there: the loss alone slopes, as the penalty
    # falls, and tells how the last step was rounded.
    found = loss + l2 / 2 * weight.double().square().sum().item()
    least = -np.log(p[range(len(y)), y]).mean() + l2 / 2 * np.square(exact.coef_).sum()
    assert found == pytest.approx(least, abs=1e-6)


def test_slices_give_what_all_rows_at_once_give(digits, monkeypatch):
    whole = logistic.probe(*digits, (1e-2, 1e-3))
    monkeypatch.setattr(logistic, "ENTRIES", 64 * 100)
    assert logistic.probe(*digits, (1e-2, 1e-3)) == pytest.approx(whole, abs=1e-4)


def test_the_features_scale_does_not_matter_and_they_stay_as_they_were(digits):
    x, y, test, test_y = digits
    before = x.clone(), test.clone()
    plain = logistic.probe(*digits, (1e-3,))
    scaled = logistic.probe(x * 1e20 + 3e20, y, test * 1e20 + 3e20, test_y, (1e-3,))
    assert scaled["top1"] == pytest.approx(plain["top1"], abs=0.3)
    assert torch.equal(x, before[0]) and torch.equal(test, before[1])


def test_the_split_holds_out_a_fifth_of_every_class():
    targets = torch.tensor([0] * 10 + [1] * 2 + [2])
    kept, held = logistic.split(targets, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(13))
    assert targets[held].tolist() == [0, 0, 1]
    assert torch.equal(held, logistic.split(targets, 0)[1])
    assert any(not torch.equal(held, logistic.split(targets, seed)[1]) for seed in range(1, 5))


def test_labels_need_not_be_consecutive(digits):
    x, y, test, test_y = digits
    plain = logistic.probe(*digits, (1e-2,))
    assert logistic.probe(x, 3 * y + 5, test, 3 * test_y + 5, (1e-2,)) == plain
    unseen = logistic.probe(x[y < 5], y[y < 5], test, test_y, (1e-2,))
    share = 100 * (test_y < 5).double().mean().item()
    assert share - 5 < unseen["top1"] <= unseen["top5"] == pytest.approx(share)


def test_mistakes_are_named(digits):
    x, y, test, test_y = digits
    first = torch.tensor([int((y == c).nonzero()[0]) for c in range(10)])
    with pytest.raises(UserError, match="one image"):
        logistic.probe(x[first], y[first], test, test_y)
    with pytest.raises(UserError, match="one class"):
        logistic.probe(x, y * 0, test, test_y)
    with pytest.raises(UserError, match="no labels"):
        logistic.probe(x, y * 0 - 1, test, test_y)
