"""Feature extraction: order, modes, dtype, errors."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ressl_plugin.evaluate.features import extract
from ressl_plugin.utils.errors import RunFault, UserError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))


def images(n=10):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 6, 6, generator=generator), torch.arange(n) % 3


def test_features_are_those_of_eval_mode_in_the_loaders_order():
    x, y = images()
    backbone = network()
    backbone[1].running_mean += 1
    expected = network()
    expected.load_state_dict(backbone.state_dict())
    features, targets = extract(backbone, DataLoader(TensorDataset(x, y), 4), progress=False)
    assert features.shape == (10, 4) and features.dtype == torch.float32
    assert torch.equal(targets, y)
    torch.testing.assert_close(features, expected.eval()(x).flatten(1).detach())


def test_modes_are_put_back_and_statistics_untouched():
    x, y = images()
    backbone = network().train()
    backbone[0].eval()
    before = backbone[1].running_mean.clone()
    extract(backbone, [(x, y)], progress=False)
    assert backbone.training and backbone[1].training and not backbone[0].training
    assert torch.equal(backbone[1].running_mean, before)


def test_raw_pixels_are_the_flat_images():
    x, y = images()
    loader = DataLoader(TensorDataset(x, y), 3)
    pixels, targets = extract(nn.Flatten(), loader, progress=False)
    assert torch.equal(pixels, x.flatten(1)) and torch.equal(targets, y)


def test_an_empty_loader_and_broken_features_are_named():
    with pytest.raises(UserError, match="no images"):
        extract(network(), [], progress=False)
    x, y = images()
    with pytest.raises(RunFault, match="not finite"):
        extract(network(), [(x * float("nan"), y)], progress=False)
