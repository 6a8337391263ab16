"""Quality without labels: each metric against its formula in plain float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from ressl_plugin.method import metrics

CLOSE = dict(rel=1e-5, abs=1e-5)


def features(n=300, d=40, decay=1.0, dead=5, seed=0):
    """[n, d] with a power-law spectrum, a mean that is not 0, and units that never fire."""
    g = np.random.default_rng(seed)
    x = (
        g.normal(size=(n, d))
        * np.arange(1, d + 1) ** (-decay / 2)
        @ np.linalg.qr(g.normal(size=(d, d)))[0]
    )
    x += g.normal(size=d)
    x[:, d - dead :] = 0
    return x


def views(v=4, n=120, d=20):
    g = np.random.default_rng(1)
    return g.normal(size=(n, d)) * np.arange(1, d + 1) + 0.5 * g.normal(size=(v, n, d)) + 2


def smooth_rank(values):
    p = values / values.sum() + 1e-7
    return np.exp(-(p * np.log(p)).sum())


def rankme(x):
    return smooth_rank(np.linalg.svd(x, compute_uv=False))


def alpha_req(x):
    """numpy's weighted fit: it squares the weights that it is given."""
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1][3:100]
    values = values[values > 1e-12]
    ranks = np.arange(4, 4 + len(values))
    return -np.polyfit(np.log(ranks), np.log(values), 1, w=ranks**-0.5)[0]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def uniformity(x):
    x = unit(x)
    squares = ((x[:, None] - x[None]) ** 2).sum(-1)
    return np.log(np.exp(-2 * squares[~np.eye(len(x), dtype=bool)]).mean())


def alignment(x):
    x = unit(x)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return np.mean([((x[i] - x[j]) ** 2).sum(-1).mean() for i, j in pairs])


def lidar(x):
    means = x.mean(0)
    between = np.cov(means.T, bias=True)
    apart = (x - means).reshape(-1, x.shape[-1])
    values, axes = np.linalg.eigh(apart.T @ apart / len(apart) + 1e-4 * np.eye(x.shape[-1]))
    root = axes / np.sqrt(values) @ axes.T
    return smooth_rank(np.linalg.eigvalsh(root @ between @ root))


@pytest.mark.parametrize("reference", [rankme, alpha_req, uniformity], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(300, 40), (30, 40), (1100, 130)], ids=str)
def test_of_features(reference, shape):
    x = torch.from_numpy(features(*shape)).float()
    found = getattr(metrics, reference.__name__)(x)
    assert found == pytest.approx(reference(x.double().numpy()), **CLOSE)


@pytest.mark.parametrize("reference", [alignment, lidar], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(2, 60, 20), (10, 120, 20), (4, 12, 20)], ids=str)
def test_of_views(reference, shape):
    x = torch.from_numpy(views(*shape)).float()
    found = getattr(metrics, reference.__name__)(x)
    assert found == pytest.approx(reference(x.double().numpy()), **CLOSE)


def test_what_is_known_without_a_reference():
    points = torch.eye(16)[torch.arange(160) % 16]  # ten images on each of 16 axes
    assert metrics.rankme(points) == pytest.approx(16, rel=1e-4)
    line = torch.arange(1.0, 50)[:, None] * torch.ones(8)
    assert metrics.rankme(line) == pytest.approx(1, abs=1e-4)
    assert metrics.uniformity(line) == pytest.approx(0, abs=1e-5)  # one point on the sphere
    assert math.isnan(metrics.alpha_req(line))
    assert metrics.rankme(torch.zeros(9, 4)) == pytest.approx(1, abs=1e-4)
    pair = torch.tensor([[1.0, 0], [-1, 0]])
    assert metrics.uniformity(pair) == pytest.approx(-8, abs=1e-5)
    assert metrics.alignment(pair[:, None]) == pytest.approx(4)
    assert metrics.alignment(torch.stack([points, 3 * points])) == pytest.approx(0, abs=1e-12)
    spectrum = torch.arange(1.0, 201).double() ** -0.7  # lambda_j = j^-1.4
    axes = torch.cat([torch.diag(spectrum), torch.diag(-spectrum)])
    assert metrics.alpha_req(axes) == pytest.approx(1.4, abs=1e-9)


def test_rows_of_zeros_are_one_point():
    dead = torch.zeros(9, 4)
    assert metrics.uniformity(dead) == pytest.approx(0, abs=1e-6)
    assert metrics.alignment(dead.expand(3, -1, -1)) == pytest.approx(0, abs=1e-12)
    half = torch.cat([dead, torch.eye(4)[:1].repeat(9, 1)])  # two points, 9 rows each
    near, far = 2 * 9 * 8, 2 * 9 * 9 * math.exp(-4)
    assert metrics.uniformity(half) == pytest.approx(math.log((near + far) / (18 * 17)), abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_cannot_be_measured_is_nan(value):
    x = torch.from_numpy(features())
    x[7, 3] = value
    seen = torch.stack([x, x])
    assert all(math.isnan(found) for found in metrics.of_features(x).values())
    assert all(math.isnan(found) for found in metrics.of_features(x[:1]).values())
    assert math.isnan(metrics.alignment(seen)) and math.isnan(metrics.lidar(seen))


def test_half_precision_and_a_products_precision_change_nothing():
    x = torch.from_numpy(features()).bfloat16()
    for call in (metrics.rankme, metrics.alpha_req, metrics.uniformity):
        assert call(x) == call(x.float())
    exact = metrics.uniformity(x)
    torch.set_float32_matmul_precision("medium")
    try:
        assert metrics.uniformity(x) == exact
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_sample_takes_every_folder():
    x = torch.arange(1000)[:, None]
    assert metrics.sampled(x) is x
    found = metrics.sampled(x, 30)[:, 0]
    assert len(found) == 30 and found.diff().min() >= 33 and found.diff().max() <= 34
