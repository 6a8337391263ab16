"""NT-Xent against SimCLR's formula, pair by pair, by autograd in float64."""

import pytest
import torch
import torch.nn.functional as F

from ressl_plugin.method.nt_xent import nt_xent
from ressl_plugin.utils.errors import UserError


def rows(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def reference(views, tau):
    """Cross-entropy of one row of scores a pair: the other view, then all of the other images."""
    z = views.double().detach().requires_grad_()
    v, n, _ = z.shape
    losses = []
    for i in range(n):
        others = z[:, [j for j in range(n) if j != i]].flatten(0, 1)
        for a in range(v):
            for b in set(range(v)) - {a}:
                scores = torch.cat([z[b, i][None], others]) @ z[a, i] / tau
                losses.append(F.cross_entropy(scores[None], torch.tensor([0])))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.detach(), z.grad


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("shape", [(2, 2, 4), (2, 8, 16), (3, 7, 5)])
@pytest.mark.parametrize("tau", [0.2, 0.02])
def test_loss_and_gradient(shape, tau):
    views = rows(*shape).requires_grad_()
    loss = nt_xent(views, tau)
    loss.backward()
    want, gradient = reference(views, tau)
    assert loss.dtype == torch.float32
    assert relative(loss.detach(), want) < 1e-5
    assert relative(views.grad, gradient) < 1e-5


def test_two_views_are_simclrs():
    """Rows of all 2N views without the row itself, the other view the class."""
    views = rows(2, 6, 8)
    z = views.flatten(0, 1).double()
    scores = (z @ z.T / 0.5).masked_fill(torch.eye(12, dtype=torch.bool), -torch.inf)
    want = F.cross_entropy(scores, torch.arange(12).roll(6))
    assert relative(nt_xent(views, 0.5), want) < 1e-6


def test_float32_under_autocast():
    views = rows(2, 8, 16)
    plain = nt_xent(views, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(views, 0.04)
    assert torch.equal(plain, mixed)
    half = views.bfloat16().requires_grad_()
    nt_xent(half, 0.04).backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 4, 8), (2, 1, 8), (4, 8)])
def test_nothing_to_contrast(shape):
    with pytest.raises(UserError, match="NT-Xent: must be"):
        nt_xent(rows(*shape), 0.2)


def test_temperature():
    with pytest.raises(UserError, match="temperature"):
        nt_xent(rows(2, 4, 8), 0.0)
