"""The loss of a classifier on batches of which some images have no label."""

import torch.nn.functional as F
from torch import Tensor


def class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (), the mean over the labelled images; 0 where none is.

    Args:
        logits: (N, classes).
        targets: (N,), -1 for an image without a label.
    """
    total = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)
