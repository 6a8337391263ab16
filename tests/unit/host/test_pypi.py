"""What is mended of 1.0.2, and only there."""

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
