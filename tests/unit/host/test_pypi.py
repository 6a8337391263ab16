"""What is mended of 1.0.2, and only there."""

import argparse
import os

import lightning.pytorch as pl
import pytest
import torch

from ressl_plugin import host
from ressl_plugin.utils.errors import UserError

pytestmark = pytest.mark.skipif(
    host.GENERATION != "pypi", reason="the host is the main branch; unset SOLO_LEARN"
)


def test_one_lightning_module():
    import pytorch_lightning
    import pytorch_lightning.callbacks
    from pytorch_lightning.callbacks import ModelCheckpoint

    assert pytorch_lightning is pl and pytorch_lightning.callbacks is pl.callbacks
    assert ModelCheckpoint is pl.callbacks.ModelCheckpoint
    assert pl.callbacks.__spec__.name == "lightning.pytorch.callbacks"
    assert issubclass(host.METHODS["ressl"], pl.LightningModule)


def test_old_attribute_names_still_work(config):
    model = host.build_method(config("byol"))
    assert model.encoder is model.backbone
    assert model.momentum_encoder is model.momentum_backbone
    model.encoder = torch.nn.Identity()
    assert type(model.backbone) is torch.nn.Identity


def test_bolts_scheduler_in_closed_form():
    from pl_bolts.optimizers.lr_scheduler import LinearWarmupCosineAnnealingLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LinearWarmupCosineAnnealingLR(optimizer, 3, 7, warmup_start_lr=0.2, eta_min=0.1)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    cosine = [0.1 + 0.9 * c for c in (1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0)]
    assert rates == pytest.approx([0.2, 0.6, 1.0, *cosine])


def test_dino_keeps_both_clip_gradients(config, trained):
    model = host.build_method(config("dino", method_kwargs__clip_grad=1e-3))
    seen = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms = [p.grad.norm() for p in module.backbone.parameters() if p.grad is not None]
            seen.append(float(torch.stack(norms).max()))

    trained(model, val=False, callbacks=[Watch()], gradient_clip_val=100.0)
    assert max(seen) <= 1e-3 * 1.001


def test_whitening_whitens():
    from solo.utils.whitening import Whitening2d

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator) * torch.tensor([1.0, 2, 3, 4]) + 5
    y = Whitening2d(4)(x)
    torch.testing.assert_close(y.T @ y / 63, torch.eye(4), atol=1e-4, rtol=0)


def test_whitening_leaves_torch_alone():
    import solo.utils.whitening as whitening

    assert whitening.torch is not torch and whitening.torch.Tensor is torch.Tensor


def test_trainer_arguments():
    parser = pl.Trainer.add_argparse_args(argparse.ArgumentParser())
    args = parser.parse_args(["--max_epochs", "3", "--precision", "bf16-mixed", "--fast_dev_run"])
    assert args.accumulate_grad_batches == 1
    trainer = pl.Trainer.from_argparse_args(args, accelerator="cpu", logger=False)
    assert trainer.max_epochs == 1 and trainer.fast_dev_run


def test_hosts_own_parser_counts_folders_only(tmp_path, monkeypatch):
    from solo.args.setup import parse_args_pretrain

    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "readme.txt").write_text("")
    words = (
        f"x --dataset custom --data_dir {tmp_path} --train_dir train --method simclr "
        "--encoder resnet18 --optimizer sgd --scheduler none --lr 0.5 --batch_size 256 "
        "--brightness 0.4 --contrast 0.4 --saturation 0.2 --hue 0.1 --num_crops_per_aug 2"
    )
    monkeypatch.setattr("sys.argv", words.split())
    args = parse_args_pretrain()
    assert args.num_classes == 1 and args.lr == 0.5
    assert args.transform_kwargs["std"] == [0.229, 0.224, 0.225]
    model = host.METHODS["simclr"](**args.__dict__)
    assert model.num_classes == 1
    assert os.path.isdir(tmp_path)


def test_imagenet_red_deviation():
    from solo.utils.classification_dataloader import prepare_transforms
    from solo.utils.pretrain_dataloader import prepare_transform

    jitter = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.1)
    for dataset in ("imagenet", "custom"):
        pipelines = [prepare_transform(dataset, **jitter).transform, *prepare_transforms(dataset)]
        assert [p.transforms[-1].std[0] for p in pipelines] == [0.229] * 3
    own = prepare_transform("custom", **jitter, std=(0.228, 1, 1)).transform
    assert own.transforms[-1].std[0] == 0.228


def test_what_only_main_has_is_refused(config):
    with pytest.raises(UserError, match="layer_decay"):
        cfg = config("ressl", optimizer__layer_decay=0.7)
        host.LinearModel(host.build_backbone(cfg), cfg)
    with pytest.raises(UserError, match="convnext_tiny"):
        host.build_backbone(config("ressl", backbone={"name": "convnext_tiny"}))


def test_defaults_come_from_the_hosts_parser(config):
    cfg = config("vicreg")
    cfg.method_kwargs = {}
    model = host.build_method(cfg)
    assert model.sim_loss_weight == 25 and model.cov_loss_weight == 1.0
    assert model.projector[0].out_features == 2048
