"""1, 2 and 4 processes with the same batch and groups: the same images, views, losses; and a run
goes on along that curve on another number of them."""

import shutil

import lightning.pytorch as pl
import pytest
import torch
from helpers import VIEW, image_folder, make_config
from ranks import on_ranks

from ressl_plugin import config
from ressl_plugin.method import registry
from ressl_plugin.train.checkpointing import CheckpointCallback
from ressl_plugin.train.pretrain import pretrain

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

BATCH, GROUPS, STEPS = 16, 4, 10  # 84 images: 5 steps an epoch, two epochs
STOP = 8  # within the second
COLOURS = {
    "color_jitter": {"prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    registry.register()
    return image_folder(tmp_path_factory.mktemp("images"), per_class=28, splits=("train",))


def run_config(folder, where, ranks, backend="batched"):
    return config.finish(
        make_config(
            data__train_path=str(folder / "train"), data__num_classes=None, data__backend=backend,
            backbone={
                "name": "timm:resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "auto"
            },
            precision="64-true", max_epochs=STEPS // 5, devices=ranks,
            optimizer__batch_size=BATCH // ranks, batchnorm__groups=GROUPS // ranks,
            strategy="ddp" if ranks > 1 else "auto", run_dir=str(where), resume=True,
            dali={"device": "cpu"},
            augmentations=[{**VIEW, **COLOURS, "role": "student"}, {**VIEW, "role": "teacher"}],
            enable_progress_bar=False, enable_model_summary=False,
        )
    )  # fmt: skip


class Watch(pl.Callback):
    """Images, views and loss of each step of this rank, and the memory after the last."""

    def __init__(self, stop):
        self.stop, self.seen, self.queue = stop, [], None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        indexes, views, _ = batch
        self.seen.append((indexes, [view.clone() for view in views], module.seen.loss.item()))
        self.queue = module.queue.clone()
        if trainer.global_step == self.stop:
            saver = next(c for c in trainer.callbacks if isinstance(c, CheckpointCallback))
            saver.stop = KeyboardInterrupt()


def trained(cfg, stop=None):
    watch = Watch(stop)
    try:
        pretrain(cfg, [watch])
    except (KeyboardInterrupt, SystemExit):
        assert stop
    return watch.seen, watch.queue


def joined(ranks):
    """Steps of all ranks as one process's: images and views in order, the mean of the losses."""
    assert all(torch.equal(queue, ranks[0][1]) for _, queue in ranks)
    steps = []
    for parts in zip(*(seen for seen, _ in ranks), strict=True):
        indexes, views, losses = zip(*parts)
        views = [torch.cat(view) for view in zip(*views)]
        steps.append((torch.cat(indexes), views, sum(losses) / len(losses)))
    return steps, ranks[0][1]


def same_curve(found, expected):
    (steps, queue), (others, memory) = found, expected
    for (indexes, views, loss), (order, drawn, other) in zip(steps, others, strict=True):
        assert torch.equal(indexes, order)
        assert all(map(torch.equal, views, drawn))
        assert loss == pytest.approx(other, abs=1e-5)
    assert (queue - memory).abs().max() <= 1e-5


def runs(folder, where, ranks, stop=None, backend="batched"):
    cfg = run_config(folder, where / "run", ranks, backend)
    return joined(on_ranks(ranks, trained, where / f"of{ranks}", cfg, stop))


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    return runs(folder, tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module")
def of_two(folder, tmp_path_factory):
    """(where it lies, its steps and its memory): a run of two, stopped."""
    where = tmp_path_factory.mktemp("of_two")
    return where, runs(folder, where, 2, stop=STOP)


def test_the_same_images_views_and_losses(folder, tmp_path, alone, of_two):
    assert len(alone[0]) == STEPS and len({loss for *_, loss in alone[0]}) == STEPS
    same_curve((of_two[1][0], alone[1]), (alone[0][:STOP], alone[1]))
    same_curve(runs(folder, tmp_path, 4), alone)


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_run_of_two_goes_on_with_another_number(folder, tmp_path, alone, of_two, ranks):
    """From within its second epoch."""
    shutil.copytree(of_two[0] / "run", tmp_path / "run")
    same_curve(runs(folder, tmp_path, ranks), (alone[0][STOP:], alone[1]))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["host", "dali"])
def test_the_other_back_ends(folder, tmp_path, backend):
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="the extra `dali` is not installed")
    one = runs(folder, tmp_path / "one", 1, backend=backend)
    same_curve(runs(folder, tmp_path / "two", 2, backend=backend), one)
