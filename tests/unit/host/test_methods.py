"""Every method of the host, built from one config and trained."""

import math

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from ressl_plugin import host
from ressl_plugin.utils.errors import UserError

METHODS = sorted(set(host.METHODS) - {"base", "linear"})
# one without and one with a teacher; MoCo v3 has other heads elsewhere, MAE only its transformer
LARGE = ("simclr", "byol", "mocov3", "mae")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_two_steps(method, config, trained, tiny):
    torch.manual_seed(0)
    cfg = config(method, **({} if method in LARGE else {"backbone": tiny}))
    before = OmegaConf.to_yaml(cfg)
    model = host.build_method(cfg)
    assert OmegaConf.to_yaml(cfg) == before
    start = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    runner = trained(model)
    assert runner.global_step == 2
    assert math.isfinite(runner.callback_metrics["val_loss"])
    assert any(not torch.equal(start[name], p) for name, p in model.backbone.named_parameters())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    names = {key.split(".")[0] for key in model.state_dict()}
    assert "backbone" in names and not names & {"encoder", "momentum_encoder"}


@pytest.mark.parametrize("labels", [[-1] * 8, [-1, 2, 0] + [-1] * 5, [0, 1, 2, 0, 1, 2, 0, 1]])
def test_a_batch_of_few_labels_or_of_none_is_trained_on(labels, config, tiny):
    model = host.build_method(config("byol", backbone=tiny, momentum={"classifier": True}))
    model.log_dict = lambda *_, **__: None  # no trainer is attached
    X, targets = torch.randn(8, 3, 32, 32), torch.tensor(labels)
    loss = model.training_step([torch.arange(8), [X, X.flip(-1)], targets], 0)
    loss.backward()
    assert loss.isfinite() and all(
        p.grad is None or p.grad.isfinite().all() for p in model.parameters()
    )
    for step in (model._base_shared_step, model._shared_step_momentum):
        out, known = step(X, targets), targets >= 0
        if known.any():
            expected = F.cross_entropy(out["logits"][known], targets[known])
            torch.testing.assert_close(out["loss"], expected)
        else:
            assert out["loss"] == 0


def test_keys_are_named_as_on_main(config):
    model = host.build_method(config("ressl", momentum={"classifier": True}))
    names = {key.split(".")[0] for key in model.state_dict()}
    assert names == {
        "backbone",
        "momentum_backbone",
        "projector",
        "momentum_projector",
        "classifier",
        "momentum_classifier",
        "queue",
        "queue_ptr",
    }


def test_old_checkpoints_load(config):
    model = host.MomentumBase(config("ressl"))
    old = {
        key.replace("backbone.", "encoder."): torch.zeros_like(value)
        for key, value in model.state_dict().items()
    }
    assert any(key.startswith("momentum_encoder.") for key in old)
    model.load_state_dict(old)
    assert all((value == 0).all() for value in model.state_dict().values())


def test_momentum_base_offers_mains_attributes(config, trained, tiny, toy):
    cfg = config(
        "ressl", backbone=tiny, momentum={"classifier": True, "base_tau": 0.9, "final_tau": 0.9}
    )
    cfg.knn_eval = {"enabled": True, "k": 3, "distance_func": "cosine"}
    model = toy(cfg)
    # main_pretrain.py reads this of the config that it passed.
    assert cfg.performance.disable_channel_last is False and model.no_channel_last is False
    assert model.cfg is cfg
    assert model.features_dim == 6 and model.num_classes == 3
    assert model.knn.distance_fx == "cosine" and model.knn.k == 3
    names = [group["name"] for group in model.learnable_params]
    assert names == ["backbone", "classifier", "momentum_classifier"]
    assert model.momentum_pairs == [(model.backbone, model.momentum_backbone)]
    out = model(torch.randn(2, 3, 32, 32))
    assert out["feats"].shape == (2, 6) and out["logits"].shape == (2, 3)
    assert not model.momentum_forward(torch.randn(2, 3, 32, 32))["feats"].requires_grad

    teacher = model.momentum_backbone.conv.weight.detach().clone()
    metrics = trained(model).callback_metrics
    assert not torch.equal(teacher, model.momentum_backbone.conv.weight)
    expected = ["val_loss", "val_acc1", "val_acc5", "momentum_val_acc1", "val_knn_acc1", "tau"]
    assert set(expected) <= set(metrics)
    # Three classes: all five of "top five" are hit.
    assert metrics["val_acc5"] == metrics["momentum_val_acc5"] == 100
    assert model.momentum_updater.cur_tau == pytest.approx(0.9)


def test_validation_is_averaged_by_batch_size(config, trained, tiny):
    model = host.build_method(config("simclr", backbone=tiny))
    batches = []
    step = model.validation_step

    def validation_step(*args, **kwargs):
        out = step(*args, **kwargs)
        if not model.trainer.sanity_checking:
            batches.append((out["batch_size"], float(out["val_loss"])))
        return out

    model.validation_step = validation_step
    metrics = trained(model).callback_metrics
    assert [n for n, _ in batches] == [8, 4]
    mean = sum(n * loss for n, loss in batches) / 12
    assert float(metrics["val_loss"]) == pytest.approx(mean, rel=1e-6)


def test_host_ressl_stays_reachable(config, tiny, monkeypatch):
    own = host.METHODS["ressl"]

    class Plugin(host.MomentumBase):
        pass

    monkeypatch.setitem(host.METHODS, "ressl", Plugin)
    monkeypatch.setitem(host.METHODS, "ressl_host", own)
    assert type(host.build_method(config("ressl", backbone=tiny))) is Plugin
    assert isinstance(
        host.build_method({**config("ressl", backbone=tiny), "method": "ressl_host"}), own
    )


def test_registered_backbone(config, trained, tiny):
    cfg = config("ressl", backbone=tiny)
    backbone = host.build_backbone(cfg)
    assert backbone.method == "ressl"
    assert backbone(torch.randn(2, 3, 8, 8)).shape == (2, 6)
    model = host.build_method(cfg)
    assert model.features_dim == 6 and type(model.momentum_backbone) is type(backbone)
    trained(model)


@pytest.mark.parametrize("dataset, size", [("custom", 64), ("cifar10", 3)])
def test_bare_backbone_has_the_hosts_stem(dataset, size, config):
    cfg = config("ressl", data__dataset=dataset)
    backbone = host.build_backbone(cfg)
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 512)
    assert backbone.conv1.kernel_size == ((7, 7) if dataset == "custom" else (3, 3))
    built = host.build_method(cfg).backbone
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in backbone.state_dict().items()
    }


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("method", "simclrr", "method=simclrr"),
        ("method", "linear", "method=linear"),
        ("backbone.name", "resnet19", "backbone.name=resnet19"),
    ],
)
def test_mistakes_are_named(key, value, words, config, tiny):
    cfg = config("simclr", backbone=tiny)
    OmegaConf.update(cfg, key, value)
    with pytest.raises(UserError, match=words):
        host.build_method(cfg)


def test_classes_must_be_counted(config, tiny):
    cfg = config("simclr", backbone=tiny)
    del cfg.data.num_classes
    with pytest.raises(UserError, match=r"data\.num_classes is missing"):
        host.build_method(cfg)


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_small_crops_are_taken(method, config, trained, tiny):
    model = host.build_method(config(method, backbone=tiny, data__num_small_crops=1))
    assert (model.num_large_crops, model.num_small_crops) == (2, 1)
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    trained(model, views=3, val=False)
    assert len(calls) == 2 * 3


def test_swav_predicts_each_large_crops_assignment_from_every_other_crop(config, trained, tiny):
    model = host.build_method(config("swav", backbone=tiny, data__num_small_crops=2))
    scores = []
    model.prototypes.register_forward_hook(lambda _module, _input, out: scores.append(out.detach()))
    metrics = trained(model, views=4, val=False, limit_train_batches=1).callback_metrics
    assert len(scores) == 4
    losses = []
    for i, assignment in enumerate(model.sk(p) for p in scores[:2]):
        others = [(p / 0.1).log_softmax(1) for p in scores[:i] + scores[i + 1 :]]
        losses += [-(assignment * p).sum(1).mean() for p in others]
    assert len(losses) == 6
    assert float(metrics["train_swav_loss"]) == pytest.approx(float(sum(losses) / 6), rel=1e-5)
    assert model.queue.shape == (2, 32, 16) and not model.queue[:, 8:].any()
    assert torch.allclose(model.queue[:, :8].norm(dim=2), torch.ones(2, 8))
    assert torch.allclose(model.prototypes.weight.norm(dim=1), torch.ones(32))


@pytest.mark.parametrize("method", ["swav", "deepclusterv2", "all4one"])
def test_methods_that_make_buffers_late_resume_with_them(method, config, trained, tiny, tmp_path):
    if method not in METHODS:
        pytest.skip("only the main branch has it")
    cfg = config(method, backbone=tiny, max_epochs=2)
    trained(host.build_method(cfg), val=False).save_checkpoint(tmp_path / "one.ckpt")
    saved = torch.load(tmp_path / "one.ckpt", weights_only=False)["state_dict"]
    model = host.build_method(cfg)

    class Start(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            self.state = {key: value.clone() for key, value in module.state_dict().items()}

    start = Start()
    options = {"val": False, "callbacks": [start], "ckpt_path": tmp_path / "one.ckpt"}
    assert trained(model, epochs=2, **options).global_step == 4
    late = {"swav": "queue", "deepclusterv2": "local_memory_embeddings"}.get(method)
    if late:
        assert saved[late].any() and torch.equal(start.state[late], saved[late])


def test_a_queue_of_another_number_of_devices_is_refused(config, trained, tiny):
    model = host.build_method(config("swav", backbone=tiny))
    model.load_state_dict({**model.state_dict(), "queue": torch.zeros(2, 16, 16)})
    with pytest.raises(UserError, match=r"queue is \(2, 16, 16\), this run's is \(2, 32, 16\)"):
        trained(model, val=False)


def test_crop_counts_given_by_the_config_hold(config, tiny):
    cfg = config("simclr", backbone=tiny, data__num_large_crops=3)
    assert host.build_method(cfg).num_crops == 3


def test_plain_and_struct_configs_are_taken(config, tiny):
    cfg = config("ressl", backbone=tiny)
    OmegaConf.set_struct(cfg, True)
    assert host.MomentumBase(cfg).cfg.momentum.base_tau == 0.99
    plain = OmegaConf.to_container(config("ressl", backbone=tiny))
    assert host.build_method(plain).cfg.scheduler.interval == "step"
