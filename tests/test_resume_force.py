"""resume_force: the settings of the config count, not those that the checkpoint was made with."""

import lightning.pytorch as pl
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from toy_run import equal

from ressl_plugin import checkpoint
from ressl_plugin.saving import AtomicCheckpointIO, CheckpointCallback, Preempted
from ressl_plugin.schedule import WarmupCosine

BATCHES = 4
SCHEDULES = {
    "ours": lambda optimizer, steps: WarmupCosine(optimizer, steps, warmup=2),
    "torch": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "none": None,
}


class Line(pl.LightningModule):
    """A linear model that notes the hyper-parameters of every step."""

    def __init__(self, schedule, settings):
        super().__init__()
        self.schedule, self.settings, self.seen = schedule, settings, []
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.zeros_(self.layer.bias)

    def training_step(self, batch, batch_idx):
        (group,) = self.trainer.optimizers[0].param_groups
        self.seen.append([group[name] for name in ("lr", "weight_decay", "momentum")])
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), **self.settings)
        if self.schedule is None:
            return optimizer
        plan = self.schedule(optimizer, self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": plan, "interval": "step"}]


class StopAfter(pl.Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch + 1 == self.epochs:
            trainer.callbacks[0].request_stop(Preempted())


def train(folder, schedule, epochs, force=False, stop=None, **settings):
    """Hyper-parameters of every step; resumed from whatever checkpoint there is."""
    module = Line(SCHEDULES[schedule], settings)
    keep = CheckpointCallback(folder, {"resume_force": force})
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[keep, StopAfter(stop)], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    images = torch.randn(2 * BATCHES, 3, generator=torch.Generator().manual_seed(0))
    source = folder / "last.ckpt"
    loader = torch.utils.data.DataLoader(images, 2)
    trainer.fit(module, loader, ckpt_path=source if source.exists() else None)
    return module.seen


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_new_settings_are_those_of_a_run_that_had_them_from_the_start(tmp_path, schedule):
    old = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    new = {"lr": 0.04, "weight_decay": 0.0, "momentum": 0.5}
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = train(tmp_path / "whole", schedule, 4, **new)
    train(tmp_path / "parts", schedule, 2, **old)
    forced = train(tmp_path / "parts", schedule, 4, force=True, **new)
    assert forced == whole[2 * BATCHES :]
    assert forced[0][0] > 0.01, "the first schedule ended at 0"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("force", [False, True])
def test_the_same_settings_change_nothing(tmp_path, schedule, force):
    settings = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole = train(folders[0], schedule, 4, **settings)
    with pytest.raises(Preempted):
        train(folders[1], schedule, 4, stop=2, **settings)
    assert train(folders[1], schedule, 4, force=force, **settings) == whole[2 * BATCHES :]
    ours, theirs = (checkpoint.load(folder) for folder in folders)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(ours[part], theirs[part]), part
