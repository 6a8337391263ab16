"""resume_force: the settings of the config count, not those that the checkpoint was made with."""

import itertools
import re
import shutil

import lightning.pytorch as pl
import pytest
import torch
from commands import command
from helpers import image_folder
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from toy_run import equal

from ressl_plugin.cli import main
from ressl_plugin.method.schedule import WarmupCosine
from ressl_plugin.run import checkpoint
from ressl_plugin.train.checkpoint_io import AtomicCheckpointIO
from ressl_plugin.train.checkpointing import CheckpointCallback, Preempted

BATCHES = 4
SETTINGS = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
SCHEDULES = {
    "ours": lambda optimizer, steps: WarmupCosine(optimizer, steps, warmup=2),
    "torch": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "by epoch": lambda optimizer, steps: StepLR(optimizer, 1, 0.5),
    "none": None,
}


class Line(pl.LightningModule):
    """A linear model that notes every step's number and hyper-parameters."""

    def __init__(self, schedule, settings):
        super().__init__()
        self.schedule, self.settings, self.seen = schedule, settings, []
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(self.layer.weight, 0.5)
        torch.nn.init.zeros_(self.layer.bias)

    def training_step(self, batch, batch_idx):
        (group,) = self.trainer.optimizers[0].param_groups
        values = [group[name] for name in ("lr", "weight_decay", "momentum")]
        self.seen.append([*values, self.trainer.global_step])
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), **self.settings)
        if self.schedule is None:
            return optimizer
        plan = self.schedule(optimizer, self.trainer.estimated_stepping_batches)
        interval = "epoch" if isinstance(plan, StepLR) else "step"
        return [optimizer], [{"scheduler": plan, "interval": interval}]


class StopAfter(pl.Callback):
    """After so many epochs, or after a step (epoch, batch)."""

    def __init__(self, when):
        self.when = when

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.when:
            trainer.checkpoint_callback.stop = Preempted()

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch + 1 == self.when:
            trainer.checkpoint_callback.stop = Preempted()


def train(folder, schedule, epochs, force=False, stop=None, batch=2, **settings):
    """Hyper-parameters and number of every step; resumed from whatever checkpoint there is."""
    module = Line(SCHEDULES[schedule], settings)
    config = {"resume_force": force, "optimizer": {"batch_size": batch}}
    keep = CheckpointCallback(folder, config)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[keep, StopAfter(stop)], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    images = torch.randn(2 * BATCHES, 3, generator=torch.Generator().manual_seed(0))
    source = folder / "last.ckpt"
    loader = torch.utils.data.DataLoader(images, batch)
    trainer.fit(module, loader, ckpt_path=source if source.exists() else None)
    return module.seen


@pytest.fixture
def folders(tmp_path):
    """Of the run that is whole, and of the one in parts."""
    made = [tmp_path / "whole", tmp_path / "parts"]
    for folder in made:
        folder.mkdir()
    return made


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_new_settings_are_those_of_a_run_that_had_them_from_the_start(folders, schedule):
    old = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    new = {"lr": 0.04, "weight_decay": 0.0, "momentum": 0.5}
    whole = train(folders[0], schedule, 4, **new)
    train(folders[1], schedule, 2, **old)
    forced = train(folders[1], schedule, 4, force=True, **new)
    assert forced == whole[2 * BATCHES :]
    assert forced[0][0] > 0.009, "the first schedule ended at 0"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("force", [False, True])
def test_the_same_settings_change_nothing(folders, schedule, force):
    settings = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}
    whole = train(folders[0], schedule, 4, **settings)
    with pytest.raises(Preempted):
        train(folders[1], schedule, 4, stop=2, **settings)
    assert train(folders[1], schedule, 4, force=force, **settings) == whole[2 * BATCHES :]
    ours, theirs = (checkpoint.load(folder) for folder in folders)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(ours[part], theirs[part]), part


def test_new_settings_within_an_epoch(folders):
    whole = train(folders[0], "ours", 4, **{**SETTINGS, "lr": 0.04})
    with pytest.raises(Preempted):
        train(folders[1], "ours", 4, stop=(2, 1), **SETTINGS)
    forced = train(folders[1], "ours", 4, force=True, **{**SETTINGS, "lr": 0.04})
    assert forced == whole[2 * BATCHES + 2 :]


@pytest.mark.parametrize(("before", "now"), itertools.permutations(SCHEDULES, 2))
def test_another_schedule_goes_on_where_the_training_stands(folders, before, now):
    whole = train(folders[0], now, 4, **SETTINGS)
    train(folders[1], before, 2, **SETTINGS)
    forced = train(folders[1], now, 4, force=True, **SETTINGS)
    assert forced == whole[2 * BATCHES :]


def test_another_batch_is_as_far_in_its_schedule(folders):
    whole = train(folders[0], "ours", 4, batch=1, **SETTINGS)
    train(folders[1], "ours", 2, **SETTINGS)
    shutil.copytree(folders[1], once := folders[1].with_name("once"))
    assert train(once, "ours", 4, force=True, batch=1, **SETTINGS) == whole[4 * BATCHES :]
    with pytest.raises(Preempted):
        train(folders[1], "ours", 4, force=True, batch=1, stop=3, **SETTINGS)
    # the same line again: some of its steps are of 2 images, some of 1
    forced = train(folders[1], "ours", 4, force=True, batch=1, **SETTINGS)
    assert forced == whole[6 * BATCHES :]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    images = image_folder(folder / "images", per_class=8, splits=("train",))
    assert main.main(command(images, folder / "run", "max_epochs=2")) == 0
    return folder


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("max_epochs=1", "max_epochs=1: .* has 2 already"),
        ("optimizer.name=adamw", "optimizer.name: sgd -> adamw"),
        ("optimizer.exclude_bias_n_norm_wd=true", "exclude_bias_n_norm_wd: False -> True"),
        ("method_kwargs.proj_output_dim=24", "other networks: size mismatch"),
        ("method_kwargs.queue_size=16", "other networks: size mismatch for queue"),
        ("momentum.classifier=true", "other networks: Missing key"),
    ],
)
def test_what_cannot_be_forced_is_said_before_anything_is_written(trained, capsys, word, message):
    config = (trained / "run" / "config.yaml").read_bytes()
    words = command(trained / "images", trained / "run", "max_epochs=2", word)
    assert main.main([*words, "resume=true", "resume_force=true"]) == main.USER_MISTAKE
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ressl: error")]
    assert re.search(message, line)
    assert (trained / "run" / "config.yaml").read_bytes() == config


def test_weights_alone_are_no_run_to_go_on_from(trained, tmp_path, capsys):
    state = checkpoint.load(trained / "run")
    (tmp_path / "alone").mkdir()
    alone = {key: state[key] for key in ("state_dict", "epoch", "global_step")}
    checkpoint.save(tmp_path / "alone" / "last.ckpt", alone)
    words = command(trained / "images", tmp_path / "run", f"resume={tmp_path}/alone")
    assert main.main(words) == main.USER_MISTAKE
    assert "weights alone" in capsys.readouterr().err
