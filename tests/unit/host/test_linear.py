"""The host's LinearModel and kNN metric, mended alike."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ressl_plugin import host


def fit_linear(model, loaders):
    runner = pl.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    runner.fit(model, *loaders)
    return runner


def test_linear_model_trains_the_classifier_only(config, images, tiny):
    cfg = config("ressl", backbone=tiny, max_epochs=2, optimizer__lr=0.5)
    backbone = host.build_backbone(cfg)
    before = [value.clone() for value in backbone.state_dict().values()]
    model = host.LinearModel(backbone, cfg)
    weight = model.classifier.weight.detach().clone()
    runner = fit_linear(model, images)
    assert not torch.equal(weight, model.classifier.weight)
    for old, new in zip(before, model.backbone.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert runner.callback_metrics["val_acc5"] == 100


def test_linear_model_finetunes(config, images, tiny):
    cfg = config("ressl", backbone=tiny, max_epochs=2, finetune=True)
    backbone = host.build_backbone(cfg)
    before = backbone.conv.weight.detach().clone()
    model = host.LinearModel(backbone, cfg)
    fit_linear(model, images)
    assert not torch.equal(before, model.backbone.conv.weight)


@pytest.mark.parametrize("scheduler", ["reduce", "step", "none"])
def test_linear_model_schedules(scheduler, config, images, tiny):
    cfg = config("ressl", backbone=tiny, max_epochs=2)
    cfg.scheduler = {"name": scheduler, "lr_decay_steps": [1]}
    model = host.LinearModel(host.build_backbone(cfg), cfg)
    runner = fit_linear(model, images)
    rate = runner.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx({"reduce": 0.01, "step": 0.001, "none": 0.01}[scheduler])
    if scheduler == "reduce":
        assert runner.lr_scheduler_configs[0].monitor == "val_loss"
        # whoever else asks gets what the host gives: its own tests do, after a training, too
        for asked in (model, host.LinearModel(host.build_backbone(cfg), cfg)):
            assert isinstance(asked.configure_optimizers()[1][0], ReduceLROnPlateau)


def brute_force(train, labels, test, truth, k, temperature, distance):
    """Weighted k-NN in numpy, an image at a time."""
    right = {1: 0, 5: 0}
    for image, label in zip(test, truth):
        if distance == "cosine":
            norms = np.linalg.norm(train, axis=1) * np.linalg.norm(image)
            similarity = train @ image / norms
            weight = np.exp(similarity / temperature)
        else:
            similarity = weight = 1 / (np.linalg.norm(train - image, axis=1) + 1e-5)
        votes = dict.fromkeys(range(10), 0.0)
        for i in np.argsort(-similarity)[:k]:
            votes[int(labels[i])] += weight[i]
        ranked = sorted(votes, key=votes.get, reverse=True)
        for top in right:
            right[top] += label in ranked[: min(top, k)]
    return right[1] * 100 / len(test), right[5] * 100 / len(test)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk", [int(5e6), 200])
def test_knn_against_brute_force_with_missing_classes(distance, chunk):
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 12)
    train = generator.normal(size=(96, 5)) + labels[:, None] % 3
    # The test set lacks most of the classes, the highest one among them.
    truth = generator.choice([0, 3, 5], size=40)
    test = generator.normal(size=(40, 5)) + truth[:, None] % 3
    knn = host.KNN(k=9, T=0.2, distance_fx=distance, max_distance_matrix_size=chunk)
    as_tensor = lambda array: torch.as_tensor(array)
    for half in (slice(0, 50), slice(50, 96)):
        called = knn(train_features=as_tensor(train[half]), train_targets=as_tensor(labels[half]))
        assert called is None
    knn(test_features=as_tensor(test), test_targets=as_tensor(truth))
    reference = brute_force(train, labels, test, truth, 9, 0.2, distance)
    assert knn.compute() == pytest.approx(reference)
    assert 0 < reference[0] < 100
    # The features are let go, as the host does.
    assert knn.train_features == knn.test_targets == []


def test_knn_leaves_unlabelled_images_out():
    knn = host.KNN(k=1, distance_fx="euclidean")
    assert knn.compute() == (-1, -1)
    features = torch.eye(4)
    knn(train_features=features, train_targets=torch.tensor([0, -1, 1, 1]))
    knn(test_features=features, test_targets=torch.tensor([0, 0, 1, -1]))
    top1, _ = knn.compute()
    # The second image finds no labelled twin; its nearest three are equally far.
    assert top1 in (pytest.approx(100.0), pytest.approx(200 / 3))


def test_knn_of_half_precision_features_is_finite():
    knn = host.KNN(k=2, T=0.05)
    features = torch.eye(4).half()
    knn(train_features=features, train_targets=torch.arange(4))
    knn(test_features=features, test_targets=torch.arange(4))
    assert knn.compute()[0] == 100
