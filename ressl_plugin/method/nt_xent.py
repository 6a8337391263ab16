"""NT-Xent (SimCLR, Eq. 1) between the contrastive views of a batch, which is its own memory.

    l(i, p) = log(e^{s_ip} + sum_n e^{s_in}) - s_ip,    s_ij = z_i . z_j / tau

i is a view of an image, p another view of the same image, n every view of the other images. Both
sides of a pair receive the gradient, where in InfoNCE and in ReSSL's loss the student's side does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.precision import float32_products


def nt_xent(views: Tensor, tau: float) -> Tensor:
    """-log of the other views of the same image among all views of the batch.

    Float32 arithmetic, whatever autocast and the inputs' dtype say. All (V x N)^2 scores are held
    for the backward pass. In several processes each contrasts its own images.

    Args:
        views: (V, N, D) unit rows, V views of N images; at least two of each.
        tau: temperature.

    Returns:
        Scalar float32, mean over the V x (V - 1) x N pairs of views of an image.

    Raises:
        UserError: fewer than two views or images, a temperature not above zero.

    Examples:
        >>> loss = nt_xent(z_s, tau=0.2)  # z_s (2, N, D), as relational_loss takes it
    """
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise UserError(
            "NT-Xent: must be (V, N, D) with at least two views and two images; got "
            f"{tuple(views.shape)}"
        )
    if not tau > 0:
        raise UserError(f"NT-Xent: the temperature must be above 0; got {tau}")
    v, n, _ = views.shape
    with torch.autocast(views.device.type, enabled=False), float32_products():
        rows = views.float().flatten(0, 1)
        scores = (rows @ rows.T / tau).view(v, n, v, n)
        same_image = torch.eye(n, dtype=torch.bool, device=rows.device)[:, None]  # [N, 1, N]
        others = scores.masked_fill(same_image, -torch.inf).flatten(2).logsumexp(2)  # [V, N]
        of_image = scores.diagonal(dim1=1, dim2=3)  # [V, V, N]
        losses = F.softplus(others[:, None] - of_image)
        itself = torch.eye(v, dtype=torch.bool, device=rows.device)[:, :, None]
        return losses.masked_fill(itself, 0).sum() / (v * (v - 1) * n)
