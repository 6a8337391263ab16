"""A run that is killed anywhere and resumed is the run that was never stopped."""

import json
import logging
import os
import random
import signal
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ressl_plugin import checkpoint, saving
from ressl_plugin.checkpoint import CheckpointError
from ressl_plugin.errors import UserError
from ressl_plugin.plain import to_plain
from ressl_plugin.rng import restore_rng, rng_state

EPOCHS, BATCHES, BATCH = 3, 5, 4
STEPS = EPOCHS * BATCHES


class Images(TensorDataset):
    def __init__(self):
        super().__init__(torch.randn(22, 6, generator=torch.Generator().manual_seed(5)))

    def __getitem__(self, index):
        return super().__getitem__(index)[0]


class PositionedLoader:
    """Shuffled by (seed, epoch); knows its place; the batches' noise is drawn globally."""

    def __init__(self):
        self.images, self.epoch, self.given, self.start = Images(), 0, 0, 0

    @property
    def sampler(self):
        return self

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state):
        self.epoch, self.start = state["epoch"], state["given"] % BATCHES

    def __len__(self):
        return BATCHES

    def __iter__(self):
        order = torch.randperm(22, generator=torch.Generator().manual_seed(self.epoch))
        first, self.start = self.start, 0
        for b in range(first, BATCHES):
            self.given = b + 1
            rows = torch.stack([self.images[i] for i in order[b * BATCH : (b + 1) * BATCH]])
            yield rows + 0.1 * torch.randn_like(rows)


def plain_loader():
    """The order and the workers' seeds come from the global generator."""
    return DataLoader(Images(), BATCH, shuffle=True, drop_last=True)


class Toy(pl.LightningModule):
    """A student, a teacher that follows it after each step, a memory, all three generators."""

    def __init__(self, log_file, kill_at=None, fault=None):
        super().__init__()
        self.log_file, self.kill_at, self.fault = Path(log_file), kill_at, fault
        self.student = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.teacher = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.teacher.requires_grad_(False)
        self.register_buffer("queue", torch.randn(16, 8))

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.rand()
        keys = self.teacher(batch)
        loss = (self.student(batch * (1 + 0.01 * noise)) - keys).square().mean()
        loss = loss + 0.01 * (keys @ self.queue.T).logsumexp(1).mean()
        self.queue = torch.cat([keys.detach(), self.queue])[:16]
        step = self.current_epoch * self.trainer.num_training_batches + batch_idx
        with open(self.log_file, "a") as file:
            file.write(json.dumps([step, loss.item()]) + "\n")
        if self.fault and step == self.fault[0]:
            loss = self.fault[1](loss)
        if self.kill_at == step:
            os._exit(9)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters()):
                t.mul_(0.9).add_(s, alpha=0.1)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.student(batch).mean() + torch.rand(()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


CONFIG = {"method": "toy", "max_epochs": EPOCHS, "checkpoint": {"frequency": 1, "every_n_steps": 0}}


def train(run, loader, kill_at=None, fault=None, resume=True, validate=True, every=1, **kwargs):
    """A run as the command line makes it: seeded, resumed from whatever checkpoint there is."""
    pl.seed_everything(3, verbose=False)
    frequency = kwargs.pop("frequency", 1)
    toy = Toy(run / "losses.jsonl", kill_at, fault)
    callback = saving.CheckpointCallback(run, CONFIG, frequency=frequency, every_n_steps=every)
    trainer = pl.Trainer(
        **{"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, **kwargs},
        callbacks=[callback],
        plugins=[saving.AtomicCheckpointIO()],
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run,
    )
    found = resume and any(p.exists() for p in (run / "last.ckpt", run / "previous" / "last.ckpt"))
    held_out = DataLoader(Images(), 11) if validate else None
    trainer.fit(toy, loader(), held_out, ckpt_path=run / "last.ckpt" if found else None)
    return trainer, toy


def in_child(work, *args, **kwargs) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*args, **kwargs)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def losses(run):
    """Loss of every step; a step that was computed twice must have come out the same."""
    found = {}
    for line in (run / "losses.jsonl").read_text().splitlines():
        step, loss = json.loads(line)
        assert found.setdefault(step, loss) == loss, f"step {step} came out differently"
    return found


def same_run(run, reference):
    assert losses(run) == losses(reference)
    ours, theirs = checkpoint.load(run), checkpoint.load(reference)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", saving.RNG):
        assert equal(ours[part], theirs[part]), part
    return True


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Reference runs, one for each way of running; made when first asked for."""
    made = {}

    def get(loader, **kwargs):
        key = (loader.__name__, *sorted(kwargs.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("reference")
            assert in_child(train, made[key], loader, **kwargs) == 0
            assert len(losses(made[key])) == STEPS
        return made[key]

    return get


# Resume exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("kill_at", range(STEPS))
def test_killed_in_any_step(tmp_path, uninterrupted, kill_at):
    """A checkpoint after every step; also the first and the last step of every epoch."""
    reference = uninterrupted(PositionedLoader)
    assert in_child(train, tmp_path, PositionedLoader, kill_at=kill_at) == 9
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert same_run(tmp_path, reference)


def test_killed_again_and_again(tmp_path, uninterrupted):
    reference = uninterrupted(PositionedLoader)
    for kill_at in (1, 4, 5, 7, 12, 14):
        assert in_child(train, tmp_path, PositionedLoader, kill_at=kill_at) == 9
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert same_run(tmp_path, reference)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("loader", [plain_loader, PositionedLoader])
@pytest.mark.parametrize("kill_at", [6, 12])
def test_epoch_checkpoints(tmp_path, uninterrupted, loader, validate, kill_at):
    """Between epochs any loader resumes exactly, also one that knows nothing of positions."""
    settings = {"every": 0, "validate": validate}
    reference = uninterrupted(loader, **settings)
    assert in_child(train, tmp_path, loader, kill_at=kill_at, **settings) == 9
    assert in_child(train, tmp_path, loader, **settings) == 0
    assert same_run(tmp_path, reference)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 2, "max_steps": 13, "max_epochs": -1},
        {"every": 1, "val_check_interval": 0.4},
        {"every": 1, "accumulate_grad_batches": 2},
        {"every": 3, "frequency": 2},
        {"every": 1, "limit_train_batches": 3},
    ],
    ids=lambda s: "-".join(s),
)
@pytest.mark.parametrize("kill_at", [4, 8])
def test_other_ways_of_running(tmp_path, settings, kill_at):
    reference = tmp_path / "reference"
    run = tmp_path / "run"
    for folder in (reference, run):
        folder.mkdir()
    assert in_child(train, reference, PositionedLoader, **settings) == 0
    code = in_child(train, run, PositionedLoader, kill_at=kill_at, **settings)
    assert code == 9
    assert in_child(train, run, PositionedLoader, **settings) == 0
    assert same_run(run, reference)


def test_a_resumed_run_may_go_on_longer(tmp_path):
    """A finished run resumed changes nothing."""
    assert in_child(train, tmp_path, PositionedLoader) == 0
    before = checkpoint.load(tmp_path)
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert equal(before["state_dict"], checkpoint.load(tmp_path)["state_dict"])
    assert len(losses(tmp_path)) == STEPS


# Stopped on purpose, and by mistake -------------------------------------------------------------


def send(number):
    def fault(loss):
        os.kill(os.getpid(), number)
        return loss

    return fault


def fail(loss):
    raise RuntimeError("in the middle of a step")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 4, 7])
def test_signal_finishes_the_step_and_saves(tmp_path, uninterrupted, number, step):
    """Step 4 ends an epoch: its validation runs first."""
    settings = {"every": 0, "frequency": 100}
    code = in_child(train, tmp_path, PositionedLoader, fault=(step, send(number)), **settings)
    assert code == (1 if number == signal.SIGINT else 143)
    assert checkpoint.load(tmp_path)["global_step"] == step + 1
    assert in_child(train, tmp_path, PositionedLoader, **settings) == 0
    assert same_run(tmp_path, uninterrupted(PositionedLoader))


def test_an_error_within_a_step_leaves_the_last_checkpoint(tmp_path, uninterrupted, caplog):
    reference = uninterrupted(PositionedLoader)
    with pytest.raises(RuntimeError, match="in the middle"), caplog.at_level(logging.WARNING):
        train(tmp_path, PositionedLoader, fault=(7, fail))
    assert f"the last checkpoint is {tmp_path / 'last.ckpt'}" in caplog.text
    assert checkpoint.load(tmp_path)["global_step"] == 7
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert same_run(tmp_path, reference)


class Vanishing(PositionedLoader):
    """An image cannot be read any more when batch 7 of the run is fetched."""

    def __iter__(self):
        for batch in super().__iter__():
            if self.epoch == 1 and self.given == 3:
                self.given = 2  # it was not given out
                raise FileNotFoundError("image 17")
            yield batch


def test_an_error_between_steps_saves_them(tmp_path):
    with pytest.raises(FileNotFoundError):
        train(tmp_path, Vanishing, every=0)
    assert checkpoint.load(tmp_path)["global_step"] == 7
    assert in_child(train, tmp_path, PositionedLoader, every=0) == 0
    assert len(losses(tmp_path)) == STEPS, "no step was lost or repeated"
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == STEPS


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, caplog):
    with caplog.at_level(logging.ERROR):
        train(tmp_path, PositionedLoader, fault=(7, lambda loss: loss * float("nan")))
    assert "not finite" in caplog.text
    kept = checkpoint.load(tmp_path)
    assert kept["global_step"] == 7
    assert all(t.isfinite().all() for t in kept["state_dict"].values())


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, caplog):
    save, count = checkpoint.save, 0

    def sometimes(path, state):
        nonlocal count
        count += 1
        if count in (3, 4):
            raise CheckpointError("no space left for it")
        return save(path, state)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    with caplog.at_level(logging.ERROR):
        train(tmp_path, PositionedLoader)
    assert caplog.text.count("no space left for it; training goes on") == 2
    assert checkpoint.load(tmp_path)["global_step"] == STEPS


def test_the_first_save_must_succeed(tmp_path):
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(UserError, match=r"last\.ckpt not written"):
        train(tmp_path, PositionedLoader, resume=False)


# Contents ---------------------------------------------------------------------------------------


def test_generators_are_restored():
    draw = lambda: (random.random(), random.gauss(0, 1), np.random.randn(), torch.randn(2).tolist())
    random.gauss(0, 1), np.random.randn()  # leaves a second deviate in store
    state = rng_state()
    first = draw()
    draw()
    restore_rng(state)
    assert draw() == first


def test_a_checkpoint_holds_what_a_resume_needs(tmp_path):
    train(tmp_path, PositionedLoader, max_epochs=1)
    state = checkpoint.load(tmp_path)
    assert state[saving.CONFIG] == CONFIG
    assert len(state[saving.RNG]) == 1
    position = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert position == [{"epoch": 0, "given": BATCHES}]
    assert {"optimizer_states", "lr_schedulers", "callbacks"} <= state.keys()


def test_to_plain(tmp_path):
    from collections import OrderedDict, namedtuple
    from enum import IntEnum

    Kind = IntEnum("Kind", "a b")
    Pair = namedtuple("Pair", "x y")
    value = {
        "cfg": OmegaConf.create({"a": 1, "b": "${a}"}),
        "numbers": [np.float32(0.5), np.int64(3), Kind.b, Pair(1, 2)],
        "array": np.arange(3),
        "path": Path("x"),
        "weights": OrderedDict(w=torch.ones(2)),
    }
    checkpoint.save(tmp_path / "x.ckpt", to_plain(value))
    found = checkpoint.load(tmp_path / "x.ckpt")
    assert found["cfg"] == {"a": 1, "b": 1}
    assert found["numbers"] == [0.5, 3, 2, (1, 2)]
    assert found["array"].tolist() == [0, 1, 2] and found["path"] == "x"
    with pytest.raises(CheckpointError, match=r"checkpoint\['callbacks'\]\['f'\] is a .*function"):
        to_plain({"callbacks": {"f": draw_nothing}})


def draw_nothing():
    pass


# Another config ---------------------------------------------------------------------------------


def test_config_differences():
    saved = {
        "method": "ressl",
        "run_dir": "a",
        "max_epochs": 200,
        "method_kwargs": {"temperature_q": 0.1, "queue_size": 4096},
        "data": {"num_workers": 4, "dataset": "cifar10"},
        "augmentations": [{"crop_size": 32}],
    }
    now = OmegaConf.create(saved)
    now.run_dir, now.data.num_workers = "b", 0
    assert saving.config_differences(saved, now) == []
    now.max_epochs = 400
    now.method_kwargs.temperature_q = 0.2
    now.batchnorm = {"groups": 8}
    now.augmentations[0].crop_size = 28
    assert saving.config_differences(saved, now) == [
        "augmentations: [{'crop_size': 32}] -> [{'crop_size': 28}]",
        "batchnorm.groups: absent -> 8",
        "max_epochs: 200 -> 400",
        "method_kwargs.temperature_q: 0.1 -> 0.2",
    ]


def test_resuming_with_another_config(tmp_path, caplog):
    source = tmp_path / "last.ckpt"
    checkpoint.save(source, {saving.CONFIG: {"optimizer": {"lr": 0.06}}, "state_dict": {}})
    assert saving.check_same_config(source, {"optimizer": {"lr": 0.06}}) == source
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.06 -> 0\.1.*resume_force"):
        saving.check_same_config(source, {"optimizer": {"lr": 0.1}})
    with caplog.at_level(logging.WARNING):
        saving.check_same_config(source, {"optimizer": {"lr": 0.1}, "resume_force": True})
    assert "optimizer.lr" in caplog.text
    checkpoint.save(source, {"state_dict": {}})
    assert saving.check_same_config(source, {}) == source
