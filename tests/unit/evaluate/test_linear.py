"""Linear evaluation: the fast probe, few labels, and the trained protocol."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ressl_plugin.evaluate.classifier import PROTOCOLS, Protocol, probe, topk_accuracy, trained
from ressl_plugin.evaluate.compare import few_labels
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.sampling import stratified_draw
from ressl_plugin.utils.errors import UserError


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))  # the files go by writer
    x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[order])
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
    with pytest.raises(UserError, match="class 9 has 2 images, too few for 3 labels"):
        stratified_draw(targets, 3, seed=1)
    with pytest.raises(UserError, match="0"):
        stratified_draw(targets, 0, seed=1)


@pytest.mark.parametrize("scale", [1, 100])
def test_a_rate_that_does_not_suit_the_features_is_said(digits, scale, caplog):
    """Protocol "small" is for features of the paper's size."""
    x, y, test, test_y = digits
    short = Protocol("short", 30.0, epochs=3, steps=(9,))
    parts = (x[:500] * scale - 30 * (scale > 1), y[:500], test, test_y)
    found = probe(*parts, PROTOCOLS["small"] if scale == 1 else short)
    train, held_out = loaders(parts)
    trained(Encoder(), train, held_out, protocol=short if scale > 1 else PROTOCOLS["imagenet"],
            **QUIET)  # fmt: skip
    assert (found["loss"] > np.log(10)) == (scale > 1)
    assert caplog.text.count("above the 2.3 of guessing") == 2 * (scale > 1)


def test_mistakes_are_named(digits):
    train_x, train_y, test_x, test_y = digits
    with pytest.raises(UserError, match="'large' unknown; one of small, imagenet"):
        probe(*digits, "large")
    with pytest.raises(UserError, match="no labels"):
        probe(train_x, torch.full_like(train_y, -1), test_x, test_y)
    with pytest.raises(UserError, match="loss is"):
        probe(train_x * 1e30, train_y, test_x, test_y)


class Encoder(torch.nn.Module):
    """A small frozen network: random convolutions, pooled to 3x3."""

    num_features = 576

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
            torch.nn.AvgPool2d(2), torch.nn.Flatten(),
        )  # fmt: skip

    def forward(self, x):
        return self.net(x)


def loaders(digits, classes=10, size=256):
    train_x, train_y, test_x, test_y = digits
    pairs = []
    for x, y in ((train_x, train_y), (test_x, test_y)):
        x, y = x[y < classes].view(-1, 1, 8, 8), y[y < classes]
        pairs.append(torch.utils.data.TensorDataset(x, y))
    make = torch.utils.data.DataLoader
    return make(pairs[0], size, shuffle=True), make(pairs[1], size)


QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def test_fast_probe_agrees_with_the_trained_protocol(digits):
    train, test = loaders((digits[0][:760], digits[1][:760], *digits[2:]))
    backbone = Encoder()
    cached = (*extract(backbone, train, progress=False), *extract(backbone, test, progress=False))
    # learning rate 30 leaves about half a point between seeds, so means of a few are compared
    slow = [trained(backbone, train, test, seed=seed, **QUIET) for seed in range(2)]
    fast = [probe(*cached, seed=seed) for seed in range(10)]
    for metric in ("top1", "top5"):
        means = [np.mean([r[metric] for r in found]) for found in (fast, slow)]
        assert means[0] > 90
        assert means[0] == pytest.approx(means[1], abs=0.5)


@pytest.mark.parametrize("name", ["small", "imagenet"])
def test_learning_rates_of_the_host_are_the_protocols(digits, name):
    train, test = loaders(digits)
    protocol = PROTOCOLS[name]
    short = Protocol(name, protocol.lr, epochs=4, steps=(2, 3) if protocol.steps else ())
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    trained(Encoder(), train, test, protocol=short, callbacks=[Watch()], **QUIET)
    expected = [short.lr * short.factor(step, len(train)) for step in range(4 * len(train))]
    assert seen == pytest.approx(expected, rel=1e-5)


def test_backbone_stays_frozen_and_is_handed_back_as_it_was(digits):
    train, test = loaders(digits)
    backbone = Encoder().train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    trained(backbone, train, test, protocol=Protocol("short", 1.0, epochs=1), **QUIET)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert backbone.training and all(p.requires_grad for p in backbone.parameters())


def test_fewer_than_five_classes_and_a_config(digits):
    train, test = loaders(digits, classes=3)
    cfg = {
        "max_epochs": 10,
        "backbone": {"name": "resnet18"},
        "data": {"num_classes": 3},
        "optimizer": {"name": "sgd", "lr": 10.0, "weight_decay": 0, "batch_size": 256},
        "scheduler": {"name": "step", "lr_decay_steps": [8]},
        "finetune": False,
    }
    found = trained(Encoder(), train, test, cfg, **QUIET)
    assert found["protocol"] == "config" and found["top1"] > 60 and found["top5"] == 100
    assert cfg["data"]["num_classes"] == 3


def test_the_number_of_classes_must_be_known(digits):
    with pytest.raises(UserError, match="num_classes"):
        trained(Encoder(), [(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))], [])
