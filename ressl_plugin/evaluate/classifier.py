"""A linear classifier on a frozen backbone, trained by a recipe through the host's LinearModel.

The learning rates of the paper's protocols belong to the paper's features: other ones may not be
learned at all, which is said. `logistic` has the probe that needs none.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ressl_plugin.utils.errors import RunFault, UserError

log = logging.getLogger(__name__)


def trained(
    backbone: nn.Module,
    train_loader: DataLoader,
    val_loader: DataLoader,
    recipe: Mapping,
    seed: int = 0,
    **trainer,
) -> dict:
    """A linear classifier on a copy of the backbone, which stays frozen, trained by Lightning.

    Args:
        train_loader, val_loader: batches (images, targets); the training loader augments.
        recipe: a linear recipe in the host's schema (`recipes.protocol` has the paper's), its
            learning rate for 256 images. Without data.num_classes the training data set's `classes`
            are counted.
        trainer: arguments for lightning.Trainer (accelerator, devices, precision, logger, ...).

    Returns:
        {"top1", "top5" (%), "loss" (validation)}, after the last epoch.

    Raises:
        UserError: data.num_classes is below what the images have.
        RunFault: the loss is not finite.
    """
    import lightning.pytorch as pl
    from omegaconf import OmegaConf

    from ressl_plugin import host
    from ressl_plugin.train.faults import told_to_stop
    from ressl_plugin.train.progress import Progress
    from ressl_plugin.utils.progress import quiet

    cfg = OmegaConf.create(recipe)
    cfg.optimizer.lr *= cfg.optimizer.batch_size / 256
    there = len(train_loader.dataset.classes)
    classes = cfg.data.get("num_classes") or there
    if classes < there:
        raise UserError(f"data.num_classes={classes}: the training images have {there} classes")
    # the host's top-5 needs five outputs; those without a class are never right
    cfg.data.num_classes = max(5, classes)
    options = {
        "callbacks": [Progress()] if trainer.get("enable_progress_bar", True) else [],
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": cfg.max_epochs,  # the last epoch's accuracy is the result
        **trainer,
        "max_epochs": cfg.max_epochs,
    }
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        fit = pl.Trainer(**options)
        model = host.LinearModel(copy.deepcopy(backbone), cfg)
        with told_to_stop(fit):
            fit.fit(model, train_loader, val_loader)
    logged = {key: float(value) for key, value in fit.callback_metrics.items()}
    _judge(logged, cfg.optimizer.lr, math.log(classes))
    return {"top1": logged["val_acc1"], "top5": logged["val_acc5"], "loss": logged["val_loss"]}


def _judge(logged: Mapping[str, float], rate: float, guessing: float) -> None:
    """RunFault for a loss that is not finite; a warning for one above that of guessing."""
    if not math.isfinite(logged["val_loss"]):
        raise RunFault(
            f"linear: the loss is {logged['val_loss']} at learning rate {rate:g}; --fast without "
            "--protocol needs none, a linear recipe can lower optimizer.lr"
        )
    if logged["train_loss_epoch"] > guessing:
        log.warning(
            "linear: the training loss is %.3g after the last epoch, above the %.3g of guessing: "
            "learning rate %g does not suit these features, and the accuracy says little about "
            "them; `ressl linear RUN --fast` needs no learning rate",
            logged["train_loss_epoch"], guessing, rate,
        )  # fmt: skip


def topk_accuracy(logits: Tensor, targets: Tensor, ks: tuple[int, ...] = (1, 5)) -> list[float]:
    """Accuracies in %, logits (N, C), targets (N,); k is bounded by C."""
    ranked = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices == targets[:, None]
    return [100.0 * ranked[:, :k].any(1).double().mean().item() for k in ks]


def check_labels(x_train, y_train, x_test, y_test, who: str = "linear") -> None:
    """Raise UserError unless there is a label for every image, and two classes."""
    for name, x, y in (("training", x_train, y_train), ("test", x_test, y_test)):
        if len(x) == 0 or len(x) != len(y):
            raise UserError(f"{who}: {len(x)} {name} features and {len(y)} labels; as many, > 0")
        if torch.as_tensor(y).min() < 0:
            raise UserError(f"{who}: the {name} set has no labels; give a labelled data set")
    if len(torch.as_tensor(y_train).unique()) < 2:
        raise UserError(f"{who}: all training images are of one class; give two classes or more")
