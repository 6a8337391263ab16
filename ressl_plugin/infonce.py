"""The InfoNCE loss on the same memory, with which the journal version warms up."""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(student: Tensor, teacher: Tensor, queue: Tensor, tau: float) -> Tensor:
    """-log of the teacher's embedding of the same image among the memory (MoCo's Eq. 1).

    Args:
        student: (V, N, D) or (N, D) unit rows, with gradient.
        teacher: (N, D) unit rows, the positives.
        queue: (K, D) unit rows, the negatives.
        tau: temperature.

    Returns:
        Scalar float32, mean over views and images.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, queue = student.float(), teacher.float(), queue.float()
        positive = (student * teacher).sum(-1, keepdim=True)
        negative = student @ queue.T
        logits = torch.cat([positive, negative], dim=-1) / tau
        return -logits.log_softmax(-1)[..., 0].mean()
