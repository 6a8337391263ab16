"""Features of clean images, extracted once and shared by the evaluators."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ressl_plugin.utils.errors import RunFault, UserError
from ressl_plugin.utils.progress import progress_bar


@torch.no_grad()
def extract(
    backbone: nn.Module,
    loader: Iterable,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a frozen backbone over a loader, in the loader's order.

    Args:
        backbone: images (N, C, H, W) to features (N, d); `nn.Flatten()` gives the pixels. Its
            train/eval flags are put back afterwards.
        loader: batches `(images, targets)`.
        device: where the forward pass runs.
        progress: show a progress bar.

    Returns:
        features (N, d) float32 and targets (N,) or (N, classes), both on the CPU.

    Raises:
        UserError: the loader is empty.
        RunFault: a feature is not finite.
    """
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.to(device).eval()
    features, targets = [], []
    try:
        for images, labels in progress_bar(
            loader, desc="features", unit="batches", disable=not progress
        ):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            features.append(backbone(images).flatten(1).float().cpu())
            targets.append(torch.as_tensor(labels).cpu())
    finally:
        for module, training in modes:
            module.training = training
    if not features:
        raise UserError("no images to extract features from; check data.train_path/data.val_path")
    features = torch.cat(features)
    if not torch.isfinite(features).all():
        raise RunFault("the backbone gives features that are not finite; is the checkpoint sound?")
    return features, torch.cat(targets)
