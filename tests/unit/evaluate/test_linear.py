"""Linear evaluation: the fast probe, few labels, and the trained protocol."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from ressl_plugin.evaluate import recipes
from ressl_plugin.evaluate.classifier import check_labels, topk_accuracy, trained
from ressl_plugin.evaluate.compare import few_labels
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.sampling import stratified_draw
from ressl_plugin.utils.errors import RunFault, UserError


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))  # the files go by writer
    x = torch.tensor(data.data[order] / 16, dtype=torch.float32)
    y = torch.tensor(data.target[order])
    return x[:1400], y[:1400], x[1400:], y[1400:]


QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def changed(name, **changes):
    """A protocol with some keys changed."""
    recipe = recipes.protocol(name)
    for key, value in changes.items():
        OmegaConf.update(recipe, key.replace("__", "."), value)
    return recipe


def test_protocols_are_the_papers():
    small, imagenet = map(recipes.protocol, ("small", "imagenet"))
    assert (small.optimizer.lr, imagenet.optimizer.lr) == (30, 0.3)
    for protocol in (small, imagenet):
        assert (protocol.max_epochs, protocol.optimizer.batch_size) == (100, 256)
        assert protocol.optimizer.weight_decay == 0 and not protocol.data
    assert small.scheduler.lr_decay_steps == [60, 80]
    with pytest.raises(UserError, match="'large' unknown; one of small, imagenet"):
        recipes.protocol("large")


def test_a_file_of_the_users_is_not_taken_for_a_protocol(tmp_path, monkeypatch):
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "ressl.yaml").write_text("optimizer: {name: sgd, lr: 1, batch_size: 8}")
    monkeypatch.chdir(tmp_path)
    assert recipes.read("cifar/ressl").optimizer.lr == 1
    assert recipes.protocol("small").optimizer.lr == 30


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
    half = targets[stratified_draw(targets, lambda n: n // 2, seed=0)]
    assert np.bincount(half)[[3, 7, 9]].tolist() == [2, 4, 1]
    with pytest.raises(UserError, match="class 9 has 2 images, too few for 3 labels"):
        stratified_draw(targets, 3, seed=1)


def test_a_rate_that_does_not_suit_the_features_is_said(digits, caplog):
    """Protocol "small" is for features of the paper's size."""
    x, y, test, test_y = digits
    trained(Encoder(), *loaders(digits), changed("imagenet", max_epochs=10), **QUIET)
    assert "of guessing" not in caplog.text
    apart = (x[:500] * 100 - 30, y[:500], test, test_y)
    trained(Encoder(), *loaders(apart), changed("small", max_epochs=3), **QUIET)
    assert "above the 2.3 of guessing" in caplog.text


def test_a_training_that_diverges_is_named(digits):
    with pytest.raises(RunFault, match=r"loss is .* at learning rate 30; --fast"):
        apart = (digits[0] * 1e30, *digits[1:])
        trained(Encoder(), *loaders(apart), changed("small", max_epochs=2), **QUIET)


def test_classes_are_not_fewer_than_the_images_have(digits):
    with pytest.raises(UserError, match="num_classes=5: the training images have 10"):
        trained(Encoder(), *loaders(digits), changed("small", data={"num_classes": 5}), **QUIET)


def test_labels_are_needed(digits):
    x, y, test, test_y = digits
    with pytest.raises(UserError, match="no labels"):
        check_labels(x, torch.full_like(y, -1), test, test_y)
    with pytest.raises(UserError, match="one class"):
        check_labels(x, y * 0, test, test_y)


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
        pairs.append(TensorDataset(x, y))
        pairs[-1].classes = range(classes)
    return DataLoader(pairs[0], size, shuffle=True), DataLoader(pairs[1], size)


def test_cached_features_give_what_the_network_in_the_loop_gives(digits):
    train, test = loaders((digits[0][:760], digits[1][:760], *digits[2:]))
    backbone = Encoder()
    features = [
        part
        for images in (train.dataset, test.dataset)
        for part in extract(backbone, DataLoader(images, 256), progress=False)
    ]
    order = RandomSampler(train.dataset, generator=torch.Generator().manual_seed(1))
    recipe = changed("small", max_epochs=10, optimizer__lr=1.0)
    slow = trained(backbone, DataLoader(train.dataset, 256, sampler=order), test, recipe, **QUIET)
    network, made = recipes.cached(*features, 256, seed=1)
    fast = trained(network, *made, recipe, **QUIET)
    assert slow["top1"] > 80
    assert fast == pytest.approx(slow, rel=1e-3)


def cosine(step, steps):
    return 0.5 * (1 + np.cos(np.pi * step / steps))


@pytest.mark.parametrize("name", ["small", "imagenet"])
def test_learning_rates_are_the_papers(digits, name):
    """x0.1 after 60 and 80 of 100 epochs, here after 2 and 3 of 4; cosine an iteration."""
    train, test = loaders(digits)
    drops = {"scheduler__lr_decay_steps": [2, 3]} if name == "small" else {}
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            (group,) = trainer.optimizers[0].param_groups
            seen.append(group["lr"])
            assert group["momentum"] == 0.9 and group["weight_decay"] == 0

    recipe = changed(name, max_epochs=4, **drops)
    trained(Encoder(), train, test, recipe, callbacks=[Watch()], **QUIET)
    steps = range(4 * len(train))
    epochs = [step // len(train) for step in steps]
    expected = {"small": [30 * (1, 1, 0.1, 0.01)[epoch] for epoch in epochs],
                "imagenet": [0.3 * cosine(step, len(steps)) for step in steps]}  # fmt: skip
    assert seen == pytest.approx(expected[name], rel=1e-5)


def test_backbone_stays_as_it_was(digits):
    train, test = loaders(digits)
    backbone = Encoder().train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    trained(backbone, train, test, changed("small", max_epochs=1, optimizer__lr=1.0), **QUIET)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert backbone.training and all(p.requires_grad for p in backbone.parameters())


class Watched(Encoder):
    """Copies of it see what the original would."""

    seen = []  # noqa: RUF012

    def forward(self, x):
        self.seen.append((self.training, self.net[0].weight.detach().clone()))
        return super().forward(x)


def test_the_copy_that_is_trained_on_stays_frozen(digits):
    trained(Watched(), *loaders(digits), changed("small", max_epochs=2, optimizer__lr=1.0), **QUIET)
    assert not any(training for training, _ in Watched.seen)
    assert all(torch.equal(weight, Watched.seen[0][1]) for _, weight in Watched.seen)


def test_fewer_than_five_classes_and_a_recipe(digits):
    """Its learning rate is for 256 images."""
    train, test = loaders(digits, classes=3, size=128)
    cfg = {
        "max_epochs": 10,
        "backbone": {"name": "resnet18"},
        "data": {"num_classes": 3},
        "optimizer": {"name": "sgd", "lr": 10.0, "weight_decay": 0, "batch_size": 128},
        "scheduler": {"name": "step", "lr_decay_steps": [8]},
        "finetune": False,
    }
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    found = trained(Encoder(), train, test, cfg, callbacks=[Watch()], **QUIET)
    assert (rates[0], rates[-1]) == pytest.approx((5.0, 0.5))
    assert found["top1"] > 60 and found["top5"] == 100
    assert cfg["data"]["num_classes"] == 3
