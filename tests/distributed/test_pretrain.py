"""Whole runs on several ranks compute what one process does: queue, teacher, metrics."""

import pytest
import torch
from helpers import VIEW, image_folder, make_config
from ranks import on_ranks
from torch import nn

from ressl_plugin import config
from ressl_plugin.method import registry, ressl
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.run import checkpoint
from ressl_plugin.train.faults import RunFault
from ressl_plugin.train.pretrain import pretrain
from ressl_plugin.utils import distributed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

PER_CLASS, STEPS = 28, 10  # 84 images: 5 steps of 16 an epoch, two epochs
PLAIN = {**VIEW, "rrc": {"enabled": False}, "horizontal_flip": {"prob": 0.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    registry.register()  # the children of a fork need not import the host again
    return image_folder(tmp_path_factory.mktemp("images"), per_class=PER_CLASS)


def run_config(folder, **changes):
    """Two views that differ but hold no randomness: the same on any number of ranks."""
    cfg = make_config(
        data__train_path=str(folder / "train"),
        data__val_path=str(folder / "val"),
        data__num_classes=None,
        backbone={"name": "timm:resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "auto"},
        precision="64-true",
        optimizer__lr=0.5,  # x 16 / 256
        scheduler__warmup_epochs=0,
        knn_eval__enabled=True,
        knn_eval__k=5,
        strategy="ddp",
        augmentations=[
            {**PLAIN, "role": "student", "solarization": {"prob": 1.0}},
            {**PLAIN, "role": "teacher"},
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        **changes,
    )
    return config.finish(cfg)


# Two ranks against one process -------------------------------------------------------------------


def watched(cfg, where, poison=None):
    """`pretrain`, with the queue, the teacher and the metrics after every step."""
    seen = {"queue": [], "teacher": [], "ddp": None}
    update, step = ReSSL.update_teacher, [0]

    def record(self, m):
        update(self, m)
        seen["queue"].append(self.queue.clone())
        seen["teacher"].append(self.momentum_backbone.conv1[0].weight.detach().clone())
        seen["metrics"] = self.trainer.callback_metrics  # the dict lives on
        ddp = self.trainer.strategy.model
        if isinstance(ddp, nn.parallel.DistributedDataParallel):
            seen["ddp"] = (set(ddp.named_module_buffers), ddp.will_sync_module_buffers())
        seen["skipped"] = self.skipped_steps
        seen["trainer"] = self.trainer

    def loss(*args):
        result = relational_loss(*args)
        step[0] += 1
        if poison == (distributed.rank(), step[0]):
            return type(result)(result[0] * float("nan"), result[1])
        return result

    ReSSL.update_teacher, ressl.relational_loss = record, loss
    cfg.run_dir = str(where)
    pretrain(cfg)
    trainer = seen.pop("trainer", None)
    if trainer is not None:
        seen["metrics"] = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return seen


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("alone")
    cfg = run_config(folder, optimizer__batch_size=16, batchnorm__groups=4)
    return on_ranks(1, watched, where, cfg, where / "run")[0], where / "run"


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):
    where = tmp_path_factory.mktemp("pair")
    cfg = run_config(folder, devices=2, optimizer__batch_size=8, batchnorm__groups=2)
    return on_ranks(2, watched, where, cfg, where / "run"), where / "run"


def test_two_ranks_with_group_batchnorm_are_one_process_with_twice_the_groups(alone, pair):
    (one, where), (two, there) = alone, pair
    ours, theirs = (checkpoint.load(w)["state_dict"] for w in (there, where))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        difference = (ours[key].double() - value.double()).abs().max()
        assert difference <= 1e-5, f"{key}: {difference}"
    assert len(one["queue"]) == STEPS
    moved = (one["teacher"][0] - one["teacher"][-1]).abs().max()
    assert moved > 1e-5  # something has happened
    for rank in two:
        for step in range(STEPS):
            assert (rank["queue"][step] - one["queue"][step]).abs().max() <= 1e-5, step


def test_queue_and_teacher_are_bit_equal_on_both_ranks_at_every_step(pair):
    (first, second), _ = pair
    for step in range(STEPS):
        assert torch.equal(first["queue"][step], second["queue"][step]), step
        assert torch.equal(first["teacher"][step], second["teacher"][step]), step


def test_ddp_leaves_the_queue_alone(pair):
    for rank in pair[0]:
        buffers, broadcasts = rank["ddp"]
        assert "momentum_backbone.bn1.running_mean" in buffers
        assert not {"queue", "queue_ptr"} & buffers
        assert not broadcasts


def test_online_metrics_are_one_processs(alone, pair):
    """84 validation images, an odd number of batches: no image counts twice."""
    one, (first, second) = alone[0]["metrics"], pair[0]
    assert {"val_acc1", "val_acc5", "val_loss", "val_knn_acc1", "val_knn_acc5"} <= one.keys()
    of_the_rank = {"loss", "embedding_spread"}  # the last step's; a mean over a rank's batches
    assert {"train_ressl_loss", "target_entropy", "train_acc1"} <= one.keys()
    for rank in (first, second):
        for name in one.keys() - of_the_rank:
            assert rank["metrics"][name] == pytest.approx(one[name], abs=2e-3), name


def test_one_rank_writes_the_run(pair):
    _, where = pair
    assert {p.name for p in where.glob("*.*")} >= {"last.ckpt", "metrics.csv", "config.yaml"}
    assert len(list(where.glob("logs/*/events*"))) == 1


# Faults on one rank ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(folder, tmp_path):
    cfg = run_config(folder, devices=2, checkpoint={"every_n_steps": 1})
    found = on_ranks(2, watched, tmp_path, cfg, tmp_path / "run", (1, 4))
    for error in found:
        assert isinstance(error, RunFault), error
        assert "step 4" in str(error) and "last.ckpt" in str(error)
    state = checkpoint.load(tmp_path / "run")
    assert state["global_step"] == 3
    assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_a_step_is_left_out_on_both_ranks(folder, tmp_path):
    cfg = run_config(folder, devices=2, max_epochs=1, faults={"non_finite": "skip"})
    first, second = on_ranks(2, watched, tmp_path, cfg, tmp_path / "run", (1, 3))
    assert (first["skipped"], second["skipped"]) == (1, 1)
    for rank in (first, second):
        assert torch.equal(rank["queue"][2], rank["queue"][1]), "the memory saw the batch"
        assert not torch.equal(rank["queue"][3], rank["queue"][2])
    assert torch.equal(first["teacher"][-1], second["teacher"][-1])


def test_unlabelled_images(folder, tmp_path):
    """The online classifier, without labels, has no gradient that DDP would wait for."""
    cfg = run_config(folder, devices=2, max_epochs=1, data__no_labels=True)
    for rank in on_ranks(2, watched, tmp_path, cfg, tmp_path / "run"):
        assert isinstance(rank, dict), rank
        assert len(rank["queue"]) == STEPS // 2
