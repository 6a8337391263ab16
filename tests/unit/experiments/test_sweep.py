"""Many trainings: where they go, when they are finished, what is refused."""

import math
import os
import shutil
import signal
import sys
import threading
import time

import pytest
import torch
from commands import command, last_line, run
from helpers import image_folder
from omegaconf import OmegaConf

from ressl_plugin import config
from ressl_plugin.cli import main
from ressl_plugin.evaluate.features import extract
from ressl_plugin.experiments import sweep
from ressl_plugin.method import registry
from ressl_plugin.run import checkpoint, results
from ressl_plugin.run.directories import open_run
from ressl_plugin.train.settling import settled
from ressl_plugin.utils.errors import RankLost, UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    registry.register()
    return image_folder(tmp_path_factory.mktemp("images"), per_class=16, splits=("train",))


def test_short_names_keep_the_value_whole():
    assert sweep.short("method_kwargs.temperature_k=0.05") == "temperature_k=0.05"
    assert sweep.short("seed=1") == "seed=1"


def test_a_sweep_trains_every_cell_once(images, tmp_path):
    words = command(images, tmp_path, "max_epochs=1", "-m", "method_kwargs.temperature_k=0.04,0.05")
    folders = [tmp_path / "temperature_k=0.04", tmp_path / "temperature_k=0.05"]
    code, text = run(tmp_path, words)
    assert code == 0, text
    assert "resume=true" not in text, "nobody has asked for it"
    before = [(f / "last.ckpt").stat().st_mtime_ns for f in folders]
    assert run(tmp_path, words)[0] == 0
    assert [(f / "last.ckpt").stat().st_mtime_ns for f in folders] == before, "run again"
    # what is not swept is not in the name, and must be the same nevertheless
    code, text = run(tmp_path, [*words, "optimizer.weight_decay=0.5"])
    assert code == main.USER_MISTAKE and "optimizer.weight_decay" in last_line(text)


def test_a_finished_cell_is_evaluated_where_its_images_are_now(images, tmp_path):
    words = command(images, tmp_path / "run", "max_epochs=1")
    assert run(tmp_path, words)[0] == 0
    copied = shutil.copytree(images, tmp_path / "moved")
    before = open_run(tmp_path / "run").cfg
    moved = command(copied, tmp_path / "run", "max_epochs=1")
    cfg = config.finish(config.load(moved[1], moved[2:]))
    sweep.same_experiment(cfg)
    sweep.train(cfg)
    there = open_run(tmp_path / "run").cfg
    assert there.data.train_path == cfg.data.train_path == str(copied / "train")
    assert {**there, "data": None} == {**before, "data": None}


def test_mistakes_are_one_line(images, tmp_path):
    with pytest.raises(UserError, match="a=glob"):
        sweep.combinations(["a=glob(*)"])
    with pytest.raises(UserError, match="quote the value"):
        sweep.combinations(["seed=1,2", "run_dir=/tmp/dönnées"])
    with pytest.raises(UserError, match=r"nothing to sweep; .* as seed=1,2"):
        sweep.multirun("digits/ressl", ["seed=1"])
    cell = tmp_path / "seed=1"
    cell.mkdir()
    (cell / "config.yaml").write_text("a: [")
    code, text = run(tmp_path, command(images, tmp_path, "-m", "seed=1,2"))
    assert code == main.USER_MISTAKE and "config.yaml: not YAML" in last_line(text)


def test_a_run_stopped_in_its_last_epoch_is_not_finished(images, tmp_path):
    words = command(images, tmp_path, "max_epochs=1", "checkpoint.every_n_steps=0")
    code, _ = run(tmp_path, words, lambda: os.kill(os.getpid(), signal.SIGINT), 3)
    assert code == main.INTERRUPTED and checkpoint.load(tmp_path)["global_step"] == 4
    assert not sweep.finished(tmp_path, 1)
    assert run(tmp_path, [*words, "resume=true"])[0] == 0
    assert sweep.finished(tmp_path, 1) and not sweep.finished(tmp_path, 2)


@pytest.mark.distributed
def test_several_devices_train_in_a_process_of_their_own(images, tmp_path):
    words = command(images, tmp_path, "max_epochs=1", "devices=2", "strategy=ddp")
    cfg = config.finish(config.load(words[1], words[2:]))
    sweep.train(cfg, meter=True)
    assert sweep.finished(tmp_path, 1)
    (rate,) = (r for r in results.read(tmp_path) if r["metric"] == "images/s")
    assert rate["protocol"] == "batch 2 x 8, cpu" and rate["value"] > 0
    assert "LOCAL_RANK" not in os.environ, "the next training could not start its ranks"


@pytest.mark.parametrize("launcher", [{"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
                                      {"SLURM_STEP_NUM_TASKS": "2"}])  # fmt: skip
def test_a_launcher_around_a_sweep_is_refused(monkeypatch, launcher):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="without torchrun"):
        sweep.train(OmegaConf.create())


def test_no_cell_is_trained_after_a_lost_rank():
    asked = []

    def work(cell):
        asked.append(cell)
        raise RankLost("rank 1: another rank is gone")

    with pytest.raises(RankLost):
        sweep.each([OmegaConf.create({"run_dir": name}) for name in "ab"], work)
    assert len(asked) == 1


CHILD = """
import signal, sys, time
def save(number, _):
    time.sleep(0.6)
    open(sys.argv[1], "a").write(signal.Signals(number).name + " ")
    sys.exit(75)
for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
    signal.signal(getattr(signal, name), save)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"])
def test_a_training_in_its_own_process_hears_signals_and_has_time_to_save(tmp_path, terminal, sent):
    number, file = getattr(signal, sent), tmp_path / "heard"

    def send():
        while not file.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    assert sweep.wait_for([sys.executable, "-c", CHILD, str(file)]) == 75
    assert file.read_text() == f"{sent} "
    assert signal.getsignal(number) is before


def test_a_sweep_under_nohup_outlives_its_terminal(terminal):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hangs_up = f"import os, signal; os.kill({os.getpid()}, signal.SIGHUP)"
    assert sweep.wait_for([sys.executable, "-c", hangs_up]) == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_training_that_was_killed_is_said_to_be(caplog):
    kill = "import os; os.kill(os.getpid(), 9)"
    assert sweep.wait_for([sys.executable, "-c", kill]) == 128 + signal.SIGKILL
    assert "SIGKILL" in caplog.text


def test_a_cell_of_another_config_can_be_forced(tmp_path):
    cfg = config.finish(config.load("digits/ressl", [f"run_dir={tmp_path}", "accelerator=cpu"]))
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    cfg.max_epochs += 1
    with pytest.raises(UserError, match=r"max_epochs.*resume_force"):
        sweep.same_experiment(cfg)
    cfg.resume_force = True
    sweep.same_experiment(cfg)


# as a machine with GPUs writes them
OF_GPUS = {"accelerator": "gpu", "devices": 2, "strategy": "ddp", "sync_batchnorm": True,
           "precision": "16-mixed"}  # fmt: skip


@pytest.mark.parametrize("changes", [{key: OF_GPUS[key]} for key in OF_GPUS] + [OF_GPUS])
def test_what_another_machine_decided_counts_only_with_a_checkpoint(tmp_path, changes):
    cfg = config.finish(config.load("digits/ressl", [f"run_dir={tmp_path}", "resume=true"]))
    there = OmegaConf.merge(settled(cfg), changes)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(there))
    sweep.same_experiment(cfg)
    cfg.max_epochs += 1
    with pytest.raises(UserError, match=r"another config: max_epochs: \d+ -> \d+; set"):
        sweep.same_experiment(cfg)
    cfg.max_epochs -= 1
    checkpoint.save(tmp_path / "last.ckpt", {"state_dict": {}, "epoch": 0, "global_step": 0})
    sweep.same_experiment(cfg, planning=True)
    # the first a run keeps, and the other alone computes the same
    if set(changes) not in ({"precision"}, {"strategy"}):
        with pytest.raises(UserError, match=" -> "):
            sweep.same_experiment(cfg)


def test_a_diverged_cell_does_not_end_the_sweep(images, tmp_path):
    words = command(images, tmp_path, "max_epochs=1", "-m", "optimizer.lr=1e18,0.1")
    code, text = run(tmp_path, words)
    assert code == main.FAULT and "1 of 2 cells failed" in last_line(text), text
    assert "lr=1e+18: the loss is not finite" in text
    assert sweep.finished(tmp_path / "lr=0.1", 1) and not sweep.finished(tmp_path / "lr=1e+18", 1)


def test_an_evaluation_that_diverged_ends_its_cell_alone(caplog):
    def work(cfg):
        images = torch.full((2, 3, 4, 4), cfg.pixel)
        extract(torch.nn.Flatten(), [(images, torch.zeros(2))], progress=False)

    cells = [{"run_dir": "a", "pixel": math.nan}, {"run_dir": "b", "pixel": 1.0}]
    assert sweep.each([OmegaConf.create(cell) for cell in cells], work) == ["a"]
    assert "a: the backbone gives features that are not finite" in caplog.text


def test_a_bug_ends_the_sweep_at_once():
    def work(cfg):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        sweep.each([OmegaConf.create({"run_dir": "a"}), OmegaConf.create({"run_dir": "b"})], work)
