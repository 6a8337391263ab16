"""What a run refuses before there is a run directory, and what it gives the optimizer."""

import pytest
import torch
from helpers import image_folder, make_config
from omegaconf import OmegaConf

from ressl_plugin import config, pretrain
from ressl_plugin.errors import UserError


@pytest.mark.parametrize(
    ("precision", "fused"),
    [("32-true", True), ("bf16-mixed", True), ("16-mixed", None), ("16", None), (16, None)],
)
def test_no_fused_step_under_a_gradient_scaler(precision, fused):
    """It unscales by itself: Lightning then refuses to clip, and nothing is skipped before it."""
    kwargs = pretrain.scale(config.finish(make_config(precision=precision))).optimizer.kwargs
    assert kwargs.get("fused") is fused and kwargs.momentum == 0.9


def test_a_fused_step_may_still_be_asked_for():
    cfg = config.finish(make_config(precision="16-mixed", optimizer__kwargs={"fused": True}))
    assert pretrain.scale(cfg).optimizer.kwargs.fused is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "dpp"}, "strategy='dpp'"),
        ({"profiler": "fast"}, "profiler"),
        ({"overfit_batches": -1}, "overfit_batches"),
        ({"gradient_clip_algorithm": "all"}, "gradient_clip_algorithm"),
        ({"max_time": "soon"}, "soon"),
        ({"max_time": b"x"}, "total_seconds"),
        ({"barebones": True}, "barebones"),
    ],
)
def test_what_lightning_refuses_is_a_users_mistake_and_leaves_no_run(tmp_path, change, message):
    root = image_folder(tmp_path / "images", splits=("train",))
    cfg = make_config(data__train_path=str(root / "train"), run_dir=str(tmp_path / "run"), **change)
    for key in ("num_classes", "num_large_crops", "num_small_crops"):
        del cfg.data[key]
    with pytest.raises(UserError, match=message) as caught:
        pretrain.pretrain(config.finish(cfg))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_making_the_trainer_draws_nothing(tmp_path):
    """The weights are drawn after it: they are those of the seed."""
    cfg = pretrain.runnable(config.finish(make_config(enable_progress_bar=True)))
    before = torch.get_rng_state()
    pretrain.make_trainer(cfg, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "run").exists()
    assert OmegaConf.select(cfg, "strategy") == "auto"
