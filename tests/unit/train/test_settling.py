"""precision=auto: what the machine multiplies itself, decided where a run begins and kept."""

import logging
import shutil

import lightning.pytorch as pl
import pytest
import torch
from helpers import image_folder, make_config

from ressl_plugin import config, run
from ressl_plugin.experiments import sweep
from ressl_plugin.run import checkpoint
from ressl_plugin.train import pretrain
from ressl_plugin.train.settling import settled
from ressl_plugin.utils import precision
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """The machine's processor has these flags."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "CPUINFO", file)
    return lambda flags: file.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\n")


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu avx512f avx512_bf16 avx512vbmi", "bf16-mixed"),
        ("fpu avx512f amx_bf16 amx_tile", "bf16-mixed"),
        ("fpu avx2 avx512f avx512bw avx512_vnni", "32-true"),  # PyTorch would emulate it
        ("", "32-true"),
    ],
)
def test_the_processor_must_multiply_bfloat16_itself(processor, flags, found):
    processor(flags)
    assert precision.fastest(gpu=False) == found


def test_a_processor_that_says_nothing_of_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "none")
    assert precision.fastest(gpu=False) == "32-true"


def test_a_gpu_that_emulates_bfloat16_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True:
                        including_emulation)  # fmt: skip
    assert precision.fastest(gpu=True) == "32-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision.fastest(gpu=True) == "bf16-mixed"


def test_it_is_the_default_and_said_in_one_line(processor, caplog):
    given = make_config()
    del given.precision
    processor("avx512_bf16")
    with caplog.at_level(logging.INFO):
        cfg = settled(config.finish(given))
    assert cfg.precision == "bf16-mixed"
    assert [r.getMessage() for r in caplog.records if "precision" in r.getMessage()] == [
        "precision=auto: bf16-mixed (the processor multiplies bfloat16 itself)"
    ]


@pytest.mark.parametrize("given", ["32-true", "16-mixed", 16, None])
def test_a_precision_that_is_named_stays(processor, given):
    processor("avx512_bf16")
    assert settled(config.finish(make_config(precision=given))).precision == given


@pytest.mark.parametrize(("flags", "warned"), [("avx2", True), ("avx2 avx512_bf16", False)])
def test_an_emulation_that_is_asked_for_is_warned_of(processor, caplog, flags, warned):
    processor(flags)
    cfg = settled(config.finish(make_config(precision="bf16-mixed")))
    assert cfg.precision == "bf16-mixed"
    assert ("only emulates bfloat16" in caplog.text) == warned


def test_no_bfloat16_where_a_stride_is_larger_than_the_map(processor, caplog):
    """oneDNN's gradient of such weights reads memory that nobody has written."""
    processor("avx512_bf16")
    for stem, wanted in (("imagenet", "32-true"), ("paper", "bf16-mixed")):
        cfg = make_config(precision="auto", backbone__stem=stem)  # of 16 pixels, 1 or 8 are left
        with caplog.at_level(logging.INFO):
            assert settled(config.finish(cfg)).precision == wanted
    assert "precision=auto: 32-true (the last maps of these views are too small" in caplog.text


def small_run(tmp_path, **changes):
    images = image_folder(tmp_path / "images", classes=2, per_class=4)
    return config.finish(make_config(
        backbone={"name": "timm:resnet18", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "paper"},
        data__train_path=str(images / "train"), max_epochs=1, enable_progress_bar=False,
        run_dir=str(tmp_path / "run"), precision="auto", **changes,
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("began", "goes_on", "kept"),
    [("avx2", "avx2 avx512_bf16", "32-true"), ("avx2 avx512_bf16", "avx2", "bf16-mixed")],
)
def test_a_run_keeps_its_precision_on_another_machine(
    tmp_path, processor, caplog, began, goes_on, kept
):
    processor(began)
    cfg = small_run(tmp_path)
    folder = pretrain.pretrain(cfg)
    stored = [run.open_run(folder).cfg.precision, run.read_config(folder / "args.json").precision]
    assert stored == [kept, kept]

    processor(goes_on)
    caplog.clear()
    cfg.resume = True
    with caplog.at_level(logging.INFO):
        sweep.same_experiment(cfg)
        pretrain.pretrain(cfg)
    assert run.open_run(folder).cfg.precision == kept
    assert f"precision=auto: {kept}, as the run began" in caplog.text
    assert ("only emulates" in caplog.text) == (goes_on == "avx2")

    cfg.precision = "16-mixed"  # named, and another: that is another run
    with pytest.raises(UserError, match=f"precision: {kept} -> 16-mixed"):
        pretrain.pretrain(cfg)


def gone_on(tmp_path, cfg, source):
    """(precision, stem) of a new run, all `auto`, that goes on from a checkpoint elsewhere."""
    cfg = cfg.copy()
    cfg.precision = cfg.backbone.stem = "auto"
    cfg.run_dir, cfg.resume = str(tmp_path / "other"), str(source)
    found = run.read_config(pretrain.pretrain(cfg) / "config.yaml")
    return found.precision, found.backbone.stem


def test_a_checkpoint_keeps_both_without_its_config_yaml(tmp_path, processor):
    processor("avx2")
    cfg = small_run(tmp_path, backbone__stem="auto")
    folder = pretrain.pretrain(cfg)
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "last.ckpt", tmp_path / "alone" / "of_digits-ep=0.ckpt")
    processor("avx2 avx512_bf16")
    before = "32-true", "paper"
    assert gone_on(tmp_path, cfg, tmp_path / "alone" / "of_digits-ep=0.ckpt") == before
    shutil.rmtree(tmp_path / "other")
    assert gone_on(tmp_path, cfg, tmp_path / "alone") == before


def test_a_run_of_the_host_keeps_its_stem(tmp_path, processor):
    processor("avx2")
    cfg = small_run(tmp_path, backbone__stem="imagenet")  # what it takes without CIFAR's name
    state = checkpoint.load(pretrain.pretrain(cfg))
    del state["ressl_config"]
    (tmp_path / "host").mkdir()
    checkpoint.save(tmp_path / "host" / "of_host-ep=0.ckpt", state)
    assert gone_on(tmp_path, cfg, tmp_path / "host") == ("32-true", "auto")


class Stop(pl.Callback):
    """As good as a kill: the checkpoint is that of the step before."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def test_a_run_in_bfloat16_resumes_bit_for_bit(tmp_path):
    images = image_folder(tmp_path / "images", classes=4, per_class=4, splits=("train",))
    words = [
        f"data.train_path={images}/train", "data.val_path=null", "precision=bf16-mixed",
        "accelerator=cpu", "backbone.kwargs={channels: [8, 16, 16, 32]}", "max_epochs=2",
        "optimizer.batch_size=8", "method_kwargs.queue_size=40", "checkpoint.every_n_steps=1",
        "enable_progress_bar=false", "enable_model_summary=false", "resume=true",
    ]  # fmt: skip
    load = lambda name: config.load("digits/ressl", [*words, f"run_dir={tmp_path / name}"])
    made = lambda name: config.finish(load(name))
    whole = pretrain.pretrain(made("whole"))
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(made("stopped"), [Stop()])
    resumed = pretrain.pretrain(made("stopped"))
    ours, theirs = (checkpoint.load(folder)["state_dict"] for folder in (resumed, whole))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
