"""What a run refuses before there is a run directory, and what it gives the optimizer."""

import lightning.pytorch as pl
import pytest
import torch
from helpers import image_folder, make_config
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf

from ressl_plugin import config, run
from ressl_plugin.method import ressl
from ressl_plugin.train import pretrain
from ressl_plugin.train.host_config import host_config
from ressl_plugin.utils.devices import runnable
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views import recipe


def on_images(tmp_path, **changes):
    """A complete config of a run in tmp_path/run, on a few images."""
    root = image_folder(tmp_path / "images", splits=("train",))
    cfg = make_config(
        data__train_path=str(root / "train"), run_dir=str(tmp_path / "run"), **changes
    )
    for key in ("num_classes", "num_large_crops", "num_small_crops"):
        del cfg.data[key]
    return config.finish(cfg)


def of_the_optimizer(**changes):
    """optimizer.kwargs as the host's classes get them."""
    cfg = config.finish(make_config(**changes))
    return host_config(cfg, recipe.read(cfg.augmentations), 10).optimizer.kwargs


@pytest.mark.parametrize(
    ("precision", "fused"),
    [("32-true", True), ("bf16-mixed", True), ("16-mixed", None), ("16", None), (16, None)],
)
def test_no_fused_step_under_a_gradient_scaler(precision, fused):
    """It unscales by itself: Lightning then refuses to clip, and nothing is skipped before it."""
    kwargs = of_the_optimizer(precision=precision)
    assert kwargs.get("fused") is fused and kwargs.momentum == 0.9


@pytest.mark.parametrize("method", ["dino", "swav"])
def test_no_fused_step_where_some_weights_stand_still_at_first(method):
    """Their last layers have no gradient for an epoch; a fused step ends where they begin."""
    kwargs = of_the_optimizer(method=method, method_kwargs={})
    still, moving = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([still, moving], lr=0.1, **kwargs)
    for trained in ([moving], [still, moving]):
        for weight in trained:
            weight.grad = torch.ones(2)
        optimizer.step()
    assert still[0] < 0


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", None)])
def test_no_fused_step_where_lightning_clips_before_none(precision, fused):
    clipped = {"precision": precision, "gradient_clip_val": 1.0}
    assert of_the_optimizer(**clipped).get("fused") is fused
    if not fused:
        with pytest.raises(UserError, match="fused=true: Lightning clips no"):
            of_the_optimizer(**clipped, optimizer__kwargs={"fused": True})


def test_a_training_in_bfloat16_can_be_clipped(tmp_path):
    images = image_folder(tmp_path / "images", classes=2, per_class=4)
    changes = {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "max_epochs": 1,
               "optimizer__batch_size": 4, "run_dir": str(tmp_path / "run"),
               "data__train_path": str(images / "train"), "data__val_path": None}  # fmt: skip
    pretrain.pretrain(config.finish(make_config(**changes)))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_teacher_in_half_precision_would_stand_still(precision):
    """m 0.999 of bfloat16 moves by less than its last bit is worth."""
    still = torch.ones(1, dtype=torch.bfloat16)
    assert torch.equal(torch._foreach_lerp([still], [still + 0.5], 0.001)[0], still)
    with pytest.raises(UserError, match=f"precision={precision}: the teacher would stand still"):
        pretrain.pretrain(config.finish(make_config(precision=precision)))


def test_the_rate_is_said_as_it_is_with_accumulation(caplog):
    with caplog.at_level("INFO"):
        cfg = config.finish(make_config(accumulate_grad_batches=4, optimizer__batch_size=8))
        made = host_config(cfg, recipe.read(cfg.augmentations), 10)
    assert f"x 32 images / 256 = {4 * made.optimizer.lr:g}" in caplog.text


def test_a_fused_step_may_still_be_asked_for():
    assert of_the_optimizer(precision="16-mixed", optimizer__kwargs={"fused": True}).fused is True


def test_what_the_host_needs_is_derived_and_the_config_stays_as_it_is():
    cfg = config.finish(make_config(devices=[0, 1], num_nodes=2, optimizer__batch_size=32))
    before = OmegaConf.to_container(cfg)
    views = [{"crop_size": size, "role": role} for size, role in
             ((32, "student"), (32, "teacher"), (16, "student"))]  # fmt: skip
    made = host_config(cfg, recipe.read(views), 7)
    counts = made.data.num_classes, made.data.num_large_crops, made.data.num_small_crops
    assert counts == (7, 2, 1)
    assert made.optimizer.lr == cfg.optimizer.lr * 4 * 32 / 256
    assert made.optimizer.classifier_lr == cfg.optimizer.classifier_lr * 4 * 32 / 256
    assert OmegaConf.to_container(cfg) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "dpp"}, "strategy='dpp'"),
        ({"overfit_batches": -1}, "overfit_batches"),
        ({"gradient_clip_algorithm": "all"}, "gradient_clip_algorithm"),
        ({"max_time": "00:08:00:00"}, "max_time=00:08:00:00: a signal ends a run in time"),
        ({"val_check_interval": "1"}, "val_check_interval"),
        ({"optimizer__batch_size": 1}, "batch_size=1: must be >= 2"),
        ({"strategy": "ddp_fork"}, "ddp_fork"),
        ({"strategy": "ddp_find_unused_parameters_true"}, "one of auto, ddp"),
        ({"strategy": "xla"}, "strategy='xla'"),
        ({"strategy": "ddp_spawn"}, "strategy='ddp_spawn': one of auto, ddp"),
        ({"method_kwargs__queue_size": 2**24, "method_kwargs__proj_output_dim": 2**16}, "memory"),
        ({"backbone__kwargs": {"foo": 1}}, "foo"),
        ({"backbone__kwargs": {"groups": 3}}, "groups"),
    ],
)
def test_what_lightning_refuses_is_a_users_mistake_and_leaves_no_run(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        pretrain.pretrain(on_images(tmp_path, **change))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("adamw", {"momentum": 0.9}, "kwargs.momentum: adamw has"),
        ("sgd", {"foo": 1}, "foo"),
        ("sgd", {"momentum": -1}, "momentum"),
        ("sgd", {"nesterov": True, "momentum": 0}, "nesterov"),
        ("sgd", {"dampening": "x"}, "dampening"),
        ("adamw", {"betas": 3}, "betas"),
        ("adam", {"betas": [0.9, "x"]}, "betas"),
        ("lars", {"eta": "x"}, "eta"),
        ("lars", {"foo": 1}, "foo"),
    ],
)
def test_what_the_optimizer_refuses_is_said_before_anything_is_written(
    tmp_path, name, kwargs, message
):
    cfg = on_images(tmp_path)
    cfg.optimizer.update(name=name, kwargs=kwargs)
    with pytest.raises(UserError, match=message) as caught:
        pretrain.pretrain(cfg)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["simsiam", "supervised"])
def test_the_optimizer_of_other_methods_is_judged_too(name):
    with pytest.raises(UserError, match="foo"):
        config.finish(make_config(method=name, method_kwargs={}, optimizer__kwargs={"foo": 1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_check_interval": 1000}, "val_check_interval=1000: an epoch has [0-9]+ batches"),
        ({"limit_train_batches": 0.0001}, "limit_train_batches=0.0001: less than one of"),
        ({"num_sanity_val_steps": 2, "val_check_interval": 1000}, "val_check_interval=1000"),
    ],
)  # fmt: skip
def test_what_counts_batches_is_judged_when_the_data_is_known(tmp_path, change, message):
    with pytest.raises(UserError, match=f"config: {message}"):
        pretrain.pretrain(on_images(tmp_path, **change))


def _logs_a_word(module, batch, batch_idx):
    module.log("loss", "a word")  # Lightning itself raises


def _misuses_lightning(module, batch, batch_idx):
    raise MisconfigurationException("a step of the method")


@pytest.mark.parametrize(
    ("step", "kind"), [(_logs_a_word, ValueError), (_misuses_lightning, MisconfigurationException)]
)
def test_an_error_in_a_training_step_is_never_the_users(tmp_path, monkeypatch, step, kind):
    monkeypatch.setattr(ressl.ReSSL, "training_step", step)
    with pytest.raises(kind):
        pretrain.pretrain(on_images(tmp_path))


def test_an_error_of_ours_before_the_first_step_is_not_the_users(tmp_path):
    class Faulty(pl.Callback):
        def on_fit_start(self, trainer, module):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        pretrain.pretrain(on_images(tmp_path), callbacks=[Faulty()])


@pytest.mark.parametrize("name", ["", "..", "../..", "../../x", "a/../../b", "/tmp/x", ".", "a\0b"])
def test_a_name_stays_within_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    cfg = on_images(tmp_path)
    cfg.run_dir, cfg.name = None, name
    with pytest.raises(UserError, match="config: name="):
        pretrain.pretrain(cfg)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    cfg.run_dir = "elsewhere"  # then a name is a label
    assert str(run.directory(cfg)) == "elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg.run_dir = "~/runs"  # a shell leaves it so in run_dir=~/runs
    assert run.directory(cfg) == tmp_path / "runs"


def test_keys_of_the_host_without_effect_are_named_once(tmp_path, caplog):
    small = {"name": "timm:resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "auto"}
    cfg = on_images(
        tmp_path, backbone=small,
        auto_resume={"enabled": True, "max_hours": 3}, auto_umap={"enabled": True},
        debug_augmentations=True, checkpoint={"dir": "elsewhere", "keep_prev": True},
        dali={"encode_indexes_into_labels": True}, optimizer__layer_decay=0.7,
        optimizer__token_learner="None",
    )  # fmt: skip
    pretrain.pretrain(cfg)
    lines = [r.getMessage() for r in caplog.records if "no effect" in r.getMessage()]
    assert len(lines) == 1 and len(lines[0].splitlines()) == 1
    for key in ("auto_resume.enabled=True (resume=true", "checkpoint.dir=elsewhere (run_dir=",
                "auto_umap.enabled", "debug_augmentations", "checkpoint.keep_prev",
                "dali.encode_indexes_into_labels", "optimizer.layer_decay=0.7"):  # fmt: skip
        assert key in lines[0]
    assert "token_learner" not in lines[0]  # the host's word for null, which is the default
    assert (tmp_path / "run" / "last.ckpt").is_file()


def test_a_config_without_them_is_quiet(tmp_path, caplog):
    cfg = on_images(tmp_path)
    cfg.optimizer.kwargs = {"foo": 1}
    with pytest.raises(UserError, match="foo"):  # after the warnings
        pretrain.pretrain(cfg)
    assert "no effect" not in caplog.text


def test_making_the_trainer_draws_nothing(tmp_path):
    """The weights are drawn after it: they are those of the seed."""
    cfg = runnable(config.finish(make_config(enable_progress_bar=True)))
    before = torch.get_rng_state()
    pretrain.make_trainer(cfg, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "run").exists()
    assert OmegaConf.select(cfg, "strategy") == "auto"
