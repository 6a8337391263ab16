"""Linear classification on a frozen backbone.

`probe` and `trained` follow the paper's protocols (Evaluation; ImageNet's from the reference
code); `probe` works on features extracted once, `trained` through the host's LinearModel with
freshly augmented images. Their learning rates belong to the paper's features: other ones may not be
learned at all, which is said. The fast probe is in `logistic`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protocol:
    """A linear classifier's training. `steps`: epochs of x0.1; none means cosine an iteration."""

    name: str
    lr: float
    epochs: int = 100
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0
    steps: tuple[int, ...] = ()

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate's multiplier at an iteration."""
        if self.steps:
            epoch = step // steps_per_epoch
            return 0.1 ** sum(epoch >= drop for drop in self.steps)
        return 0.5 * (1 + math.cos(math.pi * step / (self.epochs * steps_per_epoch)))


PROTOCOLS = {
    "small": Protocol("small", lr=30.0, steps=(60, 80)),  # CIFAR, STL-10, Tiny ImageNet
    "imagenet": Protocol("imagenet", lr=0.3),
}


def protocol_named(name: str | Protocol) -> Protocol:
    """A protocol by name ("small", "imagenet"), or itself. Raises UserError for other names."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise UserError(f"linear: protocol '{name}' unknown; one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def probe(
    features_train: Tensor,
    y_train: Tensor,
    features_test: Tensor,
    y_test: Tensor,
    protocol: str | Protocol = "small",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """The protocol's classifier on features as they are (the classifier sees the same in both).

    Args:
        features_train: (N, d), y_train: (N,), features_test: (M, d), y_test: (M,).

    Returns:
        {"top1", "top5" (%), "loss" (last epoch's mean), "protocol", "seed"}.

    Raises:
        UserError: labels missing, or the training diverged.
    """
    protocol = protocol_named(protocol)
    check_labels(features_train, y_train, features_test, y_test)
    generator = torch.Generator().manual_seed(seed)
    x, y = features_train.to(device).float(), y_train.to(device)
    classes = int(max(y_train.max(), y_test.max())) + 1
    bound = 1 / math.sqrt(x.shape[1])  # nn.Linear's own start, drawn from our generator
    weight = torch.empty(classes, x.shape[1]).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(classes).uniform_(-bound, bound, generator=generator)
    weight, bias = (p.to(device).requires_grad_() for p in (weight, bias))
    sgd = torch.optim.SGD(
        [weight, bias],
        lr=protocol.lr,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
    )
    steps, step = math.ceil(len(x) / protocol.batch_size), 0
    for _ in range(protocol.epochs):
        total = torch.zeros((), device=device)
        for rows in torch.randperm(len(x), generator=generator).split(protocol.batch_size):
            sgd.param_groups[0]["lr"] = protocol.lr * protocol.factor(step, steps)
            rows = rows.to(device)
            loss = F.cross_entropy(F.linear(x[rows], weight, bias), y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.detach() * len(rows)
            step += 1
    loss = total.item() / len(x)
    if not math.isfinite(loss):
        raise UserError(f"linear: the loss is {loss} at learning rate {protocol.lr}; lower it")
    _warn_unless_down(loss, classes, protocol.lr)
    with torch.no_grad():
        logits = F.linear(features_test.to(device).float(), weight, bias)
    top1, top5 = topk_accuracy(logits, y_test.to(device))
    return {"top1": top1, "top5": top5, "loss": loss, "protocol": protocol.name, "seed": seed}


def _warn_unless_down(loss: float, classes: int, lr: float) -> None:
    """Say so where the last epoch's mean training loss is above that of guessing."""
    if loss > math.log(classes):
        log.warning(
            "linear: the training loss is %.3g after the last epoch, above the %.3g of guessing: "
            "learning rate %g does not suit these features, and the accuracy says little about "
            "them; `ressl linear RUN --fast` needs no learning rate",
            loss,
            math.log(classes),
            lr,
        )


def topk_accuracy(logits: Tensor, targets: Tensor, ks: tuple[int, ...] = (1, 5)) -> list[float]:
    """Accuracies in %, logits (N, C), targets (N,); k is bounded by C."""
    ranked = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices == targets[:, None]
    return [100.0 * ranked[:, :k].any(1).double().mean().item() for k in ks]


def check_labels(x_train, y_train, x_test, y_test) -> None:
    """A classifier needs a label for every image, and two classes.

    Raises:
        UserError: it lacks them.
    """
    for name, x, y in (("training", x_train, y_train), ("test", x_test, y_test)):
        if len(x) == 0 or len(x) != len(y):
            raise UserError(f"linear: {len(x)} {name} features, {len(y)} labels; as many, > 0")
        if min(y) < 0 if isinstance(y, (list, tuple)) else y.min() < 0:
            raise UserError(f"linear: the {name} set has no labels; give a labelled data set")
    if len(torch.as_tensor(y_train).unique()) < 2:
        raise UserError("linear: all training images are of one class; give two classes or more")


def trained(
    backbone: nn.Module,
    train_loader: Iterable,
    val_loader: Iterable,
    cfg=None,
    protocol: str | Protocol = "small",
    seed: int = 0,
    **trainer,
) -> dict:
    """The protocol through the host's LinearModel and Lightning: augmented images every epoch.

    Args:
        backbone: frozen here; its `requires_grad` flags and modes are put back.
        train_loader, val_loader: batches (images, targets); the training loader augments (random
            resized crop and flip), the validation loader centre-crops.
        cfg: a linear recipe in the host's schema, whose optimizer, scheduler and max_epochs then
            say how to train; without one `protocol` does.
        trainer: arguments for lightning.Trainer (accelerator, devices, precision, logger, ...).

    Returns:
        {"top1", "top5" (%), "loss" (validation), "protocol", "seed"}, after the last epoch.

    Raises:
        UserError: the number of classes cannot be told, or the loss is not finite.
    """
    import lightning.pytorch as pl
    from omegaconf import OmegaConf

    from ressl_plugin import host
    from ressl_plugin.train.progress import Progress
    from ressl_plugin.utils.progress import quiet

    name = "config" if cfg is not None else protocol_named(protocol).name
    cfg = OmegaConf.create(cfg if cfg is not None else _recipe(protocol_named(protocol)))
    if cfg.data.get("num_classes") is None:
        cfg.data.num_classes = _count_classes(train_loader)
    classes = cfg.data.num_classes
    # the host's top-5 needs five outputs; those without a class are never right
    cfg.data.num_classes = max(5, cfg.data.num_classes)
    flags = [(p, p.requires_grad) for p in backbone.parameters()]
    modes = [(m, m.training) for m in backbone.modules()]
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
    try:
        with torch.random.fork_rng(), quiet():
            torch.manual_seed(seed)
            fit = pl.Trainer(**options)
            model = host.LinearModel(backbone, cfg)
            fit.fit(model, train_loader, val_loader)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training
    logged = {k: float(v) for k, v in fit.callback_metrics.items()}
    if not math.isfinite(logged["val_loss"]):
        raise UserError(f"linear: the loss is {logged['val_loss']}; lower optimizer.lr")
    _warn_unless_down(logged["train_loss_epoch"], classes, cfg.optimizer.lr)
    top1, top5, loss = (logged[f"val_{key}"] for key in ("acc1", "acc5", "loss"))
    return {"top1": top1, "top5": top5, "loss": loss, "protocol": name, "seed": seed}


def _recipe(protocol: Protocol) -> dict:
    """A protocol as a config of the host's linear model."""
    if protocol.steps:
        scheduler = {"name": "step", "lr_decay_steps": list(protocol.steps)}
    else:
        scheduler = {"name": "warmup_cosine", "warmup_epochs": 0, "interval": "step"}
    return {
        "max_epochs": protocol.epochs,
        "backbone": {"name": "given"},
        "data": {"num_classes": None},
        "optimizer": {
            "name": "sgd",
            "batch_size": protocol.batch_size,
            "lr": protocol.lr,
            "weight_decay": protocol.weight_decay,
            "kwargs": {"momentum": protocol.momentum},
        },
        "scheduler": scheduler,
        "finetune": False,
    }


def _count_classes(loader) -> int:
    dataset = getattr(loader, "dataset", None)
    classes = getattr(dataset, "classes", None)
    if classes is not None:
        return len(classes)
    targets = getattr(dataset, "targets", None)
    if targets is None and hasattr(dataset, "tensors"):
        targets = dataset.tensors[-1]
    if targets is None:
        raise UserError("linear: data.num_classes is missing and the data set has no classes")
    return int(max(targets)) + 1
