"""`ressl finetune`: fine-tuning of the whole network on a share of the labels (Table 10).

The paper says no more than that the whole network is tuned. The schedule is the usual one of
semi-supervised ImageNet (SwAV's, which Table 10 compares with): SGD with momentum 0.9, no weight
decay, 20 epochs, a learning rate for the backbone and one for the head, both x0.2 at 60 % and 80 %
of the epochs.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ressl_plugin.evaluate import recipes
from ressl_plugin.evaluate.classifier import topk_accuracy
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.sampling import stratified_draw
from ressl_plugin.evaluate.subject import append_accuracies, device_named, with_overrides
from ressl_plugin.utils import files
from ressl_plugin.utils.devices import device_count
from ressl_plugin.utils.errors import RunFault, UserError
from ressl_plugin.utils.progress import progress_bar

COMMAND = {
    "name": "finetune",
    "help": "the whole network on few labels (Table 10)",
    "arguments": {
        "--labels": {"help": "a fraction, or a file of image names"},
        "--epochs": {"type": "int", "help": "of training"},
        "--lr-backbone": {"type": "float", "help": "default: SwAV's, by the share of the labels"},
        "--lr-head": {"type": "float", "help": "default: SwAV's, by the share of the labels"},
    },
}
DECAY, DECAY_AT = 0.2, (0.6, 0.8)
FEW = 0.03  # share of the labels up to which the first pair of rates is taken
RATES = (0.02, 5.0), (0.01, 0.2)  # SwAV's of backbone and head, for 1 % and for 10 % of the labels


def evaluate(
    path, overrides, labels="0.01", epochs=20, lr_backbone=None, lr_head=None, device="auto"
) -> None:
    """Tune a run's whole network on a share of the labels, or on a list of images.

    Example:
        >>> evaluate("runs/mine", [], labels="0.1")  # doctest: +SKIP
    """
    if epochs < 1:
        raise UserError(f"--epochs {epochs}: at least 1")
    for flag, rate in (("--lr-backbone", lr_backbone), ("--lr-head", lr_head)):
        if rate is not None and not 0 <= rate < float("inf"):
            raise UserError(f"{flag} {rate}: a learning rate is 0 or more")
    run = with_overrides(path, overrides)
    train, val = recipes.datasets(run.cfg)
    # as many images as a pre-training step had on all devices, now on one
    batch = run.cfg.optimizer.batch_size * device_count(run.cfg.devices, 1) * run.cfg.num_nodes
    found = finetune(
        run.backbone(),
        train,
        val,
        labels=labels_named(labels),
        epochs=epochs,
        lr_backbone=lr_backbone,
        lr_head=lr_head,
        batch_size=min(batch, 256),
        num_workers=run.cfg.data.num_workers,
        seed=run.cfg.seed,
        device=device_named(device),
    )
    how = {key: found[key] for key in ("epochs", "lr_backbone", "lr_head", "batch_size")}
    how["share"] = round(found["n"] / len(train), 4)
    if listed := list_digest(labels):
        how["list"] = listed
    accuracies = f"top-1 {found['top1']:.2f}   top-5 {found['top5']:.2f}"
    print(f"fine-tuned on {found['n']} images: {accuracies}", flush=True)
    more = {"seeds": [run.cfg.seed], "n": found["n"], "details": how}
    append_accuracies(
        run, "finetune", {protocol(labels, epochs, lr_backbone, lr_head): found}, **more
    )


def protocol(labels: str, epochs: int = 20, lr_backbone=None, lr_head=None) -> str:
    """What a record calls a fine-tuning: `labels 0.01`, or a list's name, and what is
    not as usual."""
    words = [f"labels {Path(str(labels)).name}", *([] if epochs == 20 else [f"{epochs} epochs"])]
    rates = {"lr-backbone": lr_backbone, "lr-head": lr_head}
    return ", ".join([*words, *(f"{n} {rate:g}" for n, rate in rates.items() if rate is not None)])


def list_digest(labels: str | float) -> str | None:
    """Which list of images it is, whose name another may have, too; None of a share."""
    named = labels_named(str(labels))
    return hashlib.sha256(named.read_bytes()).hexdigest()[:32] if isinstance(named, Path) else None


def labels_named(word: str) -> float | Path:
    """A share of the labels, 0 < share <= 1, or the path of a list of images; else UserError."""
    try:
        share = float(word)
    except ValueError:
        path = Path(word)
        if path.is_file():
            return path
        raise UserError(f"labels: '{word}' is no fraction (0.01) and no file of names") from None
    if not 0 < share <= 1:
        raise UserError(f"labels: {word}; a fraction above 0 and up to 1, such as 0.01")
    return share


def labelled_rows(dataset: Dataset, labels: float | str | Path, seed: int = 0) -> np.ndarray:
    """Indices of the labelled images, sorted.

    Args:
        dataset: has `targets`; for a list also `samples`, (path, target) pairs.
        labels: a share, drawn within each class (at least one image each); or a file with one
            image name a line, as SimCLR's public 1 % and 10 % lists of ImageNet.

    Raises:
        UserError: labels missing; a list that names images that are not there.
    """
    if len(dataset.targets) == 0 or min(dataset.targets) < 0:
        raise UserError("fine-tuning: the training images have no labels")
    if isinstance(labels, (str, Path)):
        return _listed(dataset, Path(labels))
    return stratified_draw(dataset.targets, lambda n: max(1, round(labels * n)), seed)


def _listed(dataset, path):
    if not hasattr(dataset, "samples"):
        raise UserError(f"{path}: a list of names needs an image folder; give a fraction instead")
    names = files.lines(path)
    if not names:
        raise UserError(f"{path}: the list is empty; one file name a line")
    # a name may be n01440764_10026.JPEG, or say the class folder too
    rows = defaultdict(list)
    for i, (file, *_) in enumerate(dataset.samples):
        *_, folder, name = Path("/", file).parts
        rows[name].append(i)
        rows[f"{folder}/{name}"].append(i)
    for name in names:
        if len(rows[name]) > 1:
            raise UserError(
                f"{path}: {name} is the name of several training images; give class/name"
            )
        if not rows[name]:
            raise UserError(f"{path}: {name} is not in the training images; one file name a line")
    return np.unique([rows[name] for name in names])


def finetune(
    backbone: nn.Module,
    train: Dataset,
    val: Dataset,
    labels: float | str | Path = 0.01,
    epochs: int = 20,
    lr_backbone: float | None = None,
    lr_head: float | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Tune a copy of the backbone and a new linear head; the backbone given stays as it is.

    Args:
        train: (image, target) with training augmentation, and `targets`; val: clean images.
        labels: share or list, see `labelled_rows`.
        lr_backbone, lr_head: for a batch of 256; multiplied by batch_size / 256. None: SwAV's.

    Returns:
        {"top1", "top5" (%), "n" (labelled images)} after the last epoch, and how it was reached:
        "epochs", "lr_backbone", "lr_head", "batch_size".

    Raises:
        RunFault: the training diverged.
    """
    rows = labelled_rows(train, labels, seed)
    usual, scale = RATES[len(rows) > FEW * len(train)], batch_size / 256
    lr_backbone = usual[0] if lr_backbone is None else lr_backbone
    lr_head = usual[1] if lr_head is None else lr_head
    classes = int(max(max(train.targets), max(val.targets))) + 1
    tuned = copy.deepcopy(backbone).requires_grad_(True)
    some, _ = extract(tuned, [(val[0][0][None], torch.zeros(1))], device, progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(tuned, nn.Flatten(), nn.Linear(some.shape[1], classes))
        network.to(device, memory_format=torch.channels_last)
        groups = [
            {"params": list(network[0].parameters()), "lr": lr_backbone * scale},
            {"params": list(network[2].parameters()), "lr": lr_head * scale},
        ]
        # one image alone has no batch statistics
        alone = len(rows) % batch_size == 1 and len(rows) > 1
        how = {"num_workers": num_workers, "drop_last": alone}
        loader = DataLoader(Subset(train, rows.tolist()), batch_size, shuffle=True, **how)
        loss = _train(network, groups, loader, epochs, device)
    if not math.isfinite(loss):
        raise RunFault(
            f"fine-tuning: the loss is {loss} at learning rates {lr_backbone:g} (backbone) "
            f"and {lr_head:g} (head); `ressl finetune RUN` takes others: --lr-backbone, --lr-head"
        )
    clean = DataLoader(val, batch_size, num_workers=num_workers)
    top1, top5 = topk_accuracy(*extract(network, clean, device, progress=False))
    rates = {"lr_backbone": lr_backbone, "lr_head": lr_head, "batch_size": batch_size}
    return {"top1": top1, "top5": top5, "n": len(rows), "epochs": epochs, **rates}


def _train(network: nn.Module, groups: list[dict], loader, epochs: int, device) -> float:
    """Tune the weights of `groups`; the loss of the last step."""
    sgd = torch.optim.SGD(groups, momentum=0.9)
    drops = sorted({max(1, round(share * epochs)) for share in DECAY_AT})
    decay = torch.optim.lr_scheduler.MultiStepLR(sgd, drops, DECAY)
    for _ in progress_bar(range(epochs), desc="fine-tuning", unit="epochs"):
        network.train()
        for images, targets in loader:
            images = images.to(device, memory_format=torch.channels_last)
            loss = F.cross_entropy(network(images), targets.to(device))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        decay.step()
    return loss.item()
