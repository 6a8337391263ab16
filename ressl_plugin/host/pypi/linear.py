"""1.0.2's LinearModel behind the main branch's constructor."""

import torch
from solo.methods.linear import LinearModel as _HostLinear

from ressl_plugin.host import defaults, patches
from ressl_plugin.host.pypi.optim import configure, training_arguments
from ressl_plugin.utils.errors import UserError


class LinearModel(_HostLinear):
    """Linear model on a frozen `backbone`, or one tuned with it (`finetune: true`).

    The frozen backbone stays in evaluation mode. Its `forward` gives "logits" and "feats".

    Raises:
        UserError: `optimizer.layer_decay`, which only the main branch has.
    """

    def __init__(self, backbone, cfg):
        cfg = defaults.fill(defaults.copy_of(cfg), backbone=False)
        if cfg.optimizer.get("layer_decay"):
            raise UserError("optimizer.layer_decay needs solo-learn's main branch; set it to 0")
        super().__init__(backbone, **training_arguments(cfg))
        self.finetune = bool(cfg.get("finetune", False))
        self.no_channel_last = cfg.performance.disable_channel_last
        self.exclude_bias_n_norm_wd = cfg.optimizer.exclude_bias_n_norm_wd
        self.scheduler_interval = cfg.scheduler.interval
        self.min_lr = cfg.scheduler.min_lr
        self.warmup_start_lr = cfg.scheduler.warmup_start_lr
        self.warmup_epochs = cfg.scheduler.warmup_epochs
        self.validation_step_outputs = []
        for parameter in self.backbone.parameters():
            parameter.requires_grad = self.finetune

    def forward(self, X):
        if not self.no_channel_last:
            X = X.to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            feats = self.backbone(X)
        return {"logits": self.classifier(feats), "feats": feats}

    def training_step(self, batch, batch_idx):
        if not self.finetune:
            self.backbone.eval()
        _, loss, acc1, acc5 = self.shared_step(batch, batch_idx)
        metrics = {"train_loss": loss, "train_acc1": acc1, "train_acc5": acc5}
        self.log_dict(metrics, on_epoch=True, sync_dist=True)
        return loss

    def configure_optimizers(self):
        groups = [{"name": "classifier", "params": list(self.classifier.parameters())}]
        if self.finetune:
            groups.insert(0, {"name": "backbone", "params": list(self.backbone.parameters())})
        return configure(self, groups, linear=True)


patches.mend_reduce_on_plateau(LinearModel)
