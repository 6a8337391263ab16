"""How good a representation is, asked without labels.

Effective rank (RankMe), decay of the spectrum (alpha-ReQ), uniformity on the sphere, alignment of
an image's views, rank of what tells images apart (LiDAR). Features are of any floating type;
PyTorch alone is needed. NaN where they are not finite, or of fewer than two rows (or views).

Example:
    >>> metrics.rankme(backbone(images))  # doctest: +SKIP
    87.3
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ressl_plugin.utils.precision import float32_products

MOST = 25_600  # images, as many as RankMe's paper takes
RANKS = 4, 100  # of the eigenvalues that alpha-ReQ's power law is fitted to
ROWS = 1024  # of similarities at a time
T = 2.0  # of uniformity
DELTA = 1e-4  # of LiDAR


def sampled(features: Tensor, most: int = MOST) -> Tensor:
    """`features` [N, d], or `most` rows of them at equal distances: folders are sorted by class."""
    n = len(features)
    return features if n <= most else features[torch.arange(most) * n // most]


def of_features(features: Tensor) -> dict[str, float]:
    """`rankme`, `alpha_req` and `uniformity` of [N, d] by name, of a sample of the rows if many."""
    features = sampled(features)
    return {call.__name__: call(features) for call in (rankme, alpha_req, uniformity)}


def _or_nan(measure):
    """NaN of less than two, and of what is not finite: a metric ends no training."""

    @functools.wraps(measure)
    def measured(features: Tensor) -> float:
        sound = len(features) > 1 and bool(features.isfinite().all())
        return measure(features) if sound else math.nan

    return measured


@_or_nan
def rankme(features: Tensor) -> float:
    """exp of the entropy of the singular values' shares: how many directions features [N, d] use.

    From 1 (all features on a line) to min(N, d). Q. Garrido et al., *RankMe: Assessing the
    downstream performance of pretrained self-supervised representations by their rank*, ICML 2023.
    The features are not centred, as there.
    """
    return _smooth_rank(_singular_values(features))


@_or_nan
def alpha_req(features: Tensor) -> float:
    """alpha of the power law lambda_j ~ j^-alpha of the eigenvalues of the covariance of [N, d].

    Near 1 is best: a smaller one leaves noise in many directions, a larger one uses few. NaN where
    fewer than two eigenvalues are to be fitted. K. Agrawal et al., *alpha-ReQ: Assessing
    representation quality in self-supervised learning by measuring eigenspectrum decay*, NeurIPS
    2022; as the authors' code fits it, which the paper leaves open: least squares in the logarithms
    over the ranks 4 to 100, each of weight 1 / rank.
    """
    features = features.double()
    values = _singular_values(features - features.mean(0))
    noise = values[0] * max(features.shape) * torch.finfo(values.dtype).eps
    first, last = RANKS[0], min(RANKS[1], int((values > noise).sum()))
    if last <= first:
        return math.nan
    ranks = torch.arange(first, last + 1, dtype=values.dtype)
    x, y, weight = ranks.log(), 2 * values[first - 1 : last].log(), 1 / ranks
    x, y = (v - (weight * v).sum() / weight.sum() for v in (x, y))
    return -((weight * x * y).sum() / (weight * x * x).sum()).item()


@_or_nan
def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-T |x - y|^2) over all pairs of unit rows of [N, d], N >= 2.

    0 where all images are one point; the lower, the more evenly they cover the sphere (about -2 T
    at best). T. Wang and P. Isola, *Understanding contrastive representation learning through
    alignment and uniformity on the hypersphere*, ICML 2020, L_uniform.
    """
    rows = _unit(features.float())
    total, n = 0.0, len(rows)
    with float32_products():
        for start in range(0, n, ROWS):
            potential = (2 * T * (rows[start : start + ROWS] @ rows.t() - 1)).exp()
            potential.diagonal(start).zero_()  # an image with itself is no pair
            total += potential.sum(dtype=torch.float64).item()
    return math.log(total / (n * (n - 1)))


@_or_nan
def alignment(views: Tensor) -> float:
    """Mean of |x - y|^2 over the pairs of views of an image, unit rows of [V, N, d], V >= 2.

    From 0 (an image's views are one point; of a collapsed network they are, too) to 4. Wang and
    Isola 2020 (see `uniformity`), L_align with alpha = 2.
    """
    rows, v = _unit(views.double()), len(views)
    cosines = (rows.sum(0).square().sum(-1) - v) / (v * (v - 1))  # mean over an image's pairs
    return (2 - 2 * cosines).mean().item()


@_or_nan
def lidar(views: Tensor) -> float:
    """Effective rank of what tells images apart beside what their views differ in, of [V, N, d].

    The smooth rank of W^-1/2 B W^-1/2: B the covariance of the images' means over their views, W
    that of the views about them, plus DELTA on its diagonal. The paper takes V = 10 or 50 views
    and more images than the d features. V. Thilak et al., *LiDAR: Sensing linear probing
    performance in joint embedding SSL architectures*, ICLR 2024, Eq. 1 to 4.
    """
    views = views.double()
    means = views.mean(0)
    spread = (views - means).flatten(0, 1)
    within = spread.t() @ spread / len(spread)
    within.diagonal().add_(DELTA)
    # with W = L L', the matrix has the eigenvalues of L^-1 B L'^-1
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(within), (means - means.mean(0)).t(), upper=False
    )
    values = _singular_values(whitened.t()).square()
    return _smooth_rank(F.pad(values, (0, len(within) - len(values))))  # all d, as Eq. 4


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1; those of length 0 are one point, on an axis of its own."""
    rows = F.normalize(features, dim=-1)
    return torch.cat([rows, rows.norm(dim=-1, keepdim=True) < 0.5], -1)


def _smooth_rank(values: Tensor) -> float:
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7
    return (-(share * share.log()).sum()).exp().item()


def _singular_values(features: Tensor) -> Tensor:
    """Of [N, d], the largest first, in float64; on the CPU: GPUs are slow at small matrices."""
    features = features.double()
    if len(features) > features.shape[1]:
        features = torch.linalg.qr(features, mode="r").R
    return torch.linalg.svdvals(features.cpu())
