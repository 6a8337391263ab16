"""The InfoNCE warm-up on the digits: with the paper's plain head, ReSSL alone stays at log K."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import make_config, random_batches
from torch import nn

from ressl_plugin import config, data
from ressl_plugin.method.infonce import info_nce
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.nt_xent import nt_xent
from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.run import metrics
from ressl_plugin.train import pretrain
from ressl_plugin.utils.errors import UserError

EPOCHS = 12
SMALL = {"name": "timm:resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "auto"}


class Shares(pl.Callback):
    """What part of the loss is InfoNCE at each step, and whether its loss is that mixture, and
    what is logged the relational loss alone."""

    def __init__(self):
        self.shares, self.right, self.alone = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        _, share = module.loss_shares() or (1, 0)
        self.shares.append(share)
        # the step itself, on copies: no image is labelled, so no classifier adds to its loss
        again, (_, views, targets) = copy.deepcopy(module), batch
        again.trainer = trainer  # a copy has none
        found = again.training_step([None, views, torch.full_like(targets, -1)], 1)
        logged, again = again.seen.loss, copy.deepcopy(module)
        z_t = again.momentum_forward(views[module.teacher_view])["z"]
        _, z_s = again.student_forward([views[i] for i in module.student_views])
        kwargs = module.cfg.method_kwargs
        ours = relational_loss(z_s, z_t, module.queue, module.tau_s, module.tau_t).loss
        other = info_nce(z_s, z_t, module.queue, kwargs.infonce_temperature)
        total = (1 - share) * ours + share * other
        if weight := kwargs.nt_xent_weight:
            total = total + weight * nt_xent(z_s, kwargs.infonce_temperature)
        self.right.append(torch.isclose(found, total))
        self.alone.append(torch.isclose(logged, ours))


def fit(cfg, steps=4, views=2):
    module, seen = ReSSL(cfg), Shares()
    trainer = pl.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[seen],
    )  # fmt: skip
    batches = random_batches(steps, 8, views)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return module, seen


def test_the_loss_goes_over_linearly():
    _, seen = fit(make_config(backbone=SMALL, method_kwargs__infonce_epochs=1))
    assert seen.shares == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0, 0, 0])
    assert all(seen.right) and all(seen.alone)


def test_its_length_may_be_a_word_for_another_key():
    """As cifar/ressl_fast has it, which solo-learn's own scripts hand on unresolved."""
    model = ReSSL(make_config(backbone=SMALL, method_kwargs__infonce_epochs="${max_epochs}"))
    assert model.infonce_epochs == 2


@pytest.mark.parametrize("epochs", [0, 1])
def test_nt_xent_between_the_contrastive_views_is_added_all_along(epochs):
    weight = {"method_kwargs__nt_xent_weight": 0.5, "method_kwargs__infonce_epochs": epochs}
    student, teacher = make_config().augmentations
    module, seen = fit(
        make_config(backbone=SMALL, augmentations=[student, teacher, student], **weight), views=3
    )
    assert module.student_views == [0, 2] and len(seen.right) == 8
    assert all(seen.right) and all(seen.alone)


def test_nt_xent_needs_two_contrastive_views():
    with pytest.raises(UserError, match=r"nt_xent_weight=1.0: .* num_crops: 2"):
        ReSSL(make_config(backbone=SMALL, method_kwargs__nt_xent_weight=1.0))


def test_off_by_default():
    module, seen = fit(make_config(backbone=SMALL))
    assert seen.shares == [0] * 8 and module.predictor is None and not module.nt_xent_weight


def test_predictor_is_the_students_alone():
    changes = {"method_kwargs__predictor": True, "method_kwargs__pred_hidden_dim": 24}
    torch.manual_seed(0)
    module = ReSSL(make_config(backbone=SMALL, **changes))
    assert "predictor" in [group["name"] for group in module.learnable_params]
    assert all(teacher is not module.predictor for _, teacher in module.momentum_pairs)
    x = torch.randn(4, 3, 16, 16)
    module.eval()
    with torch.no_grad():
        plain = F.normalize(module.projector(module.backbone(x)), dim=1)
        assert torch.equal(module.momentum_forward(x)["z"], plain)  # the same weights as yet
        assert not torch.allclose(module(x)["z"], plain)
    assert isinstance(module.predictor, nn.Sequential) and module.predictor[0].out_features == 24
    before = module.predictor[0].weight.clone()
    module, _ = fit(make_config(backbone=SMALL, **changes))
    assert not torch.equal(module.predictor[0].weight, before)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return data.make_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "low", "high"), [
    ("digits/ressl", 0.98, 1.0),  # plain: the target is uniform
    ("digits/ressl_v2", 0.2, 0.9),
])  # fmt: skip
def test_target_entropy(recipe, low, high, digits, tmp_path):
    words = [
        f"data.train_path={digits}/train", f"data.val_path={digits}/val", f"run_dir={tmp_path}/run",
        "method_kwargs.proj_batchnorm=false", f"max_epochs={EPOCHS}", "accelerator=cpu",
        "knn_eval.enabled=false", "checkpoint.frequency=12", "enable_progress_bar=false",
        f"check_val_every_n_epoch={EPOCHS}", "enable_model_summary=false",
    ]  # fmt: skip
    if recipe == "digits/ressl_v2":
        words.append("method_kwargs.infonce_epochs=4")
    folder = pretrain.pretrain(config.finish(config.load(recipe, words)))
    _, entropy = metrics.read_metrics(folder / "metrics.csv")["target_entropy"]
    assert low < entropy[-1] <= high, entropy
