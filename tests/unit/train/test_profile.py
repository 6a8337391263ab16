"""The profile accounts for all the time of a step, and its floors follow from the shapes."""

import sys

import lightning.pytorch as pl
import pytest
import torch
from helpers import image_folder, make_config, random_batches
from omegaconf import OmegaConf
from ranks import on_ranks
from torch.utils.data import DataLoader

from ressl_plugin import config
from ressl_plugin.config.diff import config_differences
from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.train import roofline
from ressl_plugin.train.pretrain import make_trainer, pretrain
from ressl_plugin.train.profile import PHASES, Phases, Profile

MACHINE = roofline.Machine("test", flops=1e12, flops32=1e11, bytes=1e10)
SMALL = {"name": "timm:resnet10t", "kwargs": {"channels": [4, 4, 8, 8]}, "stem": "auto"}


def fit(callback, model=None, steps=4):
    model = model or ReSSL(make_config())
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                "enable_model_summary": False, "accelerator": "cpu"}  # fmt: skip
    trainer = pl.Trainer(max_epochs=1, callbacks=[callback], **settings)
    trainer.fit(model, DataLoader(random_batches(steps, 8), batch_size=None))
    return model


def test_phases_add_up_and_the_clocks_are_taken_away():
    phases = Phases(warm=1, steps=2)
    model = fit(phases)
    seconds = phases.seconds()
    whole = (phases._marks[phases._whole - 1][1] - phases._marks[0][1]) / 2
    assert phases.measured == 2
    assert sum(seconds.values()) == pytest.approx(whole)
    assert set(seconds) == set(PHASES)
    hooks = [(n._forward_hooks, n._forward_pre_hooks) for n in model.networks]
    assert not any(map(any, hooks))


def test_a_phase_gets_the_time_spent_in_it(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    phases = Phases(warm=1, steps=1)
    for phase in ("loss", "student forward", "loss", "backward", "data"):
        phases.begin(phase)
    phases.measured, phases._whole = 1, len(phases._marks)
    assert phases.seconds() == {"student forward": 1, "loss": 2, "backward": 1}


class Slow(pl.Callback):
    """On the clock, half a second passes in one place of a step, three before a validation."""

    def __init__(self, place):
        self.place, self.now = place, 0.0

    def wait(self, seconds):
        self.now += seconds

    def on_fit_start(self, trainer, module):
        wait = lambda *_: self.wait(0.5)
        if self.place == "loss":
            module.classifier.register_forward_hook(wait)
        elif self.place == "EMA and optimizer":
            trainer.optimizers[0].register_step_post_hook(wait)
        else:
            student = self.place == "student forward"
            layer = module.backbone.conv1 if student else module.momentum_projector[0]
            layer.register_forward_hook(wait)

    def on_validation_start(self, trainer, module):
        self.wait(3)


@pytest.mark.parametrize("place", [p for p in PHASES if p not in ("data", "backward")])
def test_the_time_is_the_right_phases(place, monkeypatch):
    phases, slow = Phases(warm=1, steps=3), Slow(place)
    model = ReSSL(make_config(backbone=SMALL))
    monkeypatch.setattr("time.perf_counter", lambda: slow.now)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
                "enable_model_summary": False, "accelerator": "cpu"}  # fmt: skip
    trainer = pl.Trainer(max_epochs=1, callbacks=[phases, slow], val_check_interval=2,
                         num_sanity_val_steps=0, **settings)  # fmt: skip
    train = random_batches(4, 8)
    clean = [[views[0], targets] for _, views, targets in train[:1]]
    trainer.fit(model, *(DataLoader(batches, batch_size=None) for batches in (train, clean)))
    seconds = phases.seconds()
    assert seconds.pop(place) == 0.5
    assert set(seconds.values()) == {0}


def test_compiled_networks_are_seen_too():
    model, phases = ReSSL(make_config(backbone=SMALL)), Phases(warm=1, steps=2)
    for network in model.networks:
        network.compile(backend="eager")
    fit(phases, model)
    assert set(phases.seconds()) == set(PHASES)


def test_floors_are_counted_from_the_shapes():
    model = ReSSL(make_config(method_kwargs__queue_size=64, batchnorm__groups=2))
    shapes = [(8, 3, 16, 16), (8, 3, 16, 16)]
    least = roofline.of_step(model, shapes, MACHINE)
    # views: two of 8 x 3 x 16 x 16, read as bytes and written as float32
    assert least["data"].seconds == pytest.approx(2 * 8 * 3 * 256 * 5 / 1e10)
    # loss: scores and reads of 16 rows against 64 x 16, two products of 2 N K D each
    assert least["loss"].seconds == pytest.approx(2 * 2 * 16 * 64 * 16 / 1e11)
    forward, backward = least["student forward"].seconds, least["backward"].seconds
    assert least["teacher forward"].seconds == forward
    assert 1.9 * forward < backward < 2 * forward  # no gradient by the pixels
    # ResNet-18 with the paper's stem: 0.56 G multiply-adds at 32x32, a quarter at 16x16
    assert forward * 1e12 == pytest.approx(8 * 2 * 0.5558e9 / 4, rel=0.01)


def test_multi_crop_counts_every_crop():
    model = ReSSL(make_config(backbone=SMALL))
    one = roofline.network_flops(model, [(8, 3, 16, 16)])
    assert roofline.network_flops(model, [(8, 3, 16, 16)] * 2) == tuple(2 * x for x in one)


def test_the_machine_is_measured():
    generator = torch.get_rng_state()
    machine = roofline.measure(torch.device("cpu"))
    assert torch.equal(generator, torch.get_rng_state()), "in the midst of a training"
    assert 1e8 < machine.flops32 < 1e14 and 1e8 < machine.flops < 1e14
    assert 1e8 < machine.bytes < 1e13


def test_the_losss_floor_is_of_full_float32_products_and_the_networks_of_the_runs(monkeypatch):
    seen = []

    def product(device, dtype, side):
        seen.append((dtype, torch.backends.cuda.matmul.fp32_precision))
        return 1.0 + len(seen)

    monkeypatch.setattr(roofline, "_product", product)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        machine = roofline.measure(torch.device("cpu"))
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == [(torch.float32, "tf32"), (torch.float32, "ieee")]
    assert machine.flops32 < machine.flops


def profiled(tmp_path, monkeypatch, **changes):
    """The directory of a run of two steps with a profile."""
    monkeypatch.setattr("ressl_plugin.train.profile.WARM", 1)
    monkeypatch.setattr("ressl_plugin.train.profile.STEPS", 1)
    image_folder(tmp_path / "images", splits=("train",))
    train = str(tmp_path / "images" / "train")
    cfg = make_config(data__train_path=train, max_epochs=1, backbone=SMALL, **changes)
    cfg.augmentations[0].crop_size = cfg.augmentations[1].crop_size = 16
    for key in ("num_classes", "num_large_crops", "num_small_crops"):
        del cfg.data[key]
    OmegaConf.update(cfg, "run_dir", str(tmp_path / "run"), force_add=True)
    OmegaConf.update(cfg, "profile", True, force_add=True)
    OmegaConf.update(cfg, "enable_progress_bar", False, force_add=True)
    return pretrain(config.finish(cfg))


def run_table(tmp_path, monkeypatch, **changes):
    """Lines of its profile, split at the bars."""
    text = (profiled(tmp_path, monkeypatch, **changes) / "profile.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0] and row[0][0].isalpha()}


def test_a_run_writes_the_table(tmp_path, monkeypatch):
    rows = run_table(tmp_path, monkeypatch)
    assert rows.keys() - {"phase", "step"} == set(PHASES)
    assert float(rows["step"][3]) > 0


def test_a_table_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch, caplog, capsys):
    (tmp_path / "run" / "profile.md").mkdir(parents=True)
    assert (profiled(tmp_path, monkeypatch) / "last.ckpt").is_file()
    assert "profile.md: not written: Is a directory" in caplog.text
    assert "| student forward |" in capsys.readouterr().out


def test_a_method_without_floors_gets_a_table_without_them(tmp_path, monkeypatch):
    rows = run_table(tmp_path, monkeypatch, method="supervised")
    assert {"loss", "backward", "step"} <= rows.keys()
    assert {tuple(row[2:4]) for name, row in rows.items() if name != "phase"} == {("-", "-")}


def test_a_run_may_be_resumed_without_its_profile():
    assert config_differences({"profile": True}, {"profile": False}) == []


def test_only_where_it_is_asked_for(tmp_path):
    cfg = config.finish(config.load("digits/ressl", ["accelerator=cpu"]))
    cfg.devices = 1
    has = lambda: any(isinstance(c, Profile) for c in make_trainer(cfg, tmp_path).callbacks)
    assert not has()
    cfg.profile = True
    assert has()


def loaded():
    """The modules of a process that has imported all that trains, and has not trained."""
    return list(sys.modules)


def test_a_training_does_not_look_for_a_compiler(tmp_path):
    """PyTorch's module for C++ extensions warns where CUDA is installed and no GPU is there."""
    (modules,) = on_ranks(1, loaded, tmp_path)  # from a clean server: this file was imported anew
    assert "ressl_plugin.train.roofline" in modules
    assert "torch.utils.cpp_extension" not in modules
