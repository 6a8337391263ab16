"""What a compiled run compiles, and how often."""

from functools import partial

import pytest
import torch
from helpers import image_folder, make_config

from ressl_plugin import config
from ressl_plugin.train import pretrain
from ressl_plugin.train.compiling import EagerValidation


@pytest.fixture
def graphs(monkeypatch):
    """Every graph that torch.compile makes, run as it is."""

    def backend(graph, inputs):
        found.append(graph)
        return graph

    found = []
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    return found


def test_validation_and_the_last_images_of_an_epoch_compile_nothing(graphs, tmp_path):
    """24 images in batches of 10: four are left over in an epoch, and validated as a batch."""
    cfg = make_config(
        data__train_path=str(image_folder(tmp_path / "images") / "train"),
        data__val_path=str(tmp_path / "images" / "val"), data__backend="batched",
        run_dir=str(tmp_path / "run"), accelerator="cpu", precision="32-true", max_epochs=2,
        enable_progress_bar=False, optimizer__batch_size=10, batchnorm__groups=2,
        backbone={"name": "timm:resnet10t", "kwargs": {"channels": [4, 4, 8, 8]}, "stem": "auto"},
        performance={"compile": True}, knn_eval={"enabled": True, "k": 2},
    )  # fmt: skip
    for key in ("num_classes", "num_large_crops", "num_small_crops"):
        del cfg.data[key]
    pretrain.pretrain(config.finish(cfg))
    assert "val_knn_acc1" in (tmp_path / "run" / "metrics.csv").read_text()
    # student and teacher, encoder and head each, and the operations of their views, which are alike
    # (torch 2.9 takes the student's graphs for the teacher)
    assert len(graphs) in (3, 5)


def test_a_run_that_fails_in_validation_leaves_the_compiler_as_it_was(graphs):
    double = torch.compile(lambda x: 2 * x)
    watcher = EagerValidation()
    watcher.on_validation_start(None, None)
    double(torch.ones(2))
    assert not graphs
    watcher.on_exception(None, None, KeyboardInterrupt())
    double(torch.ones(2))
    assert len(graphs) == 1
