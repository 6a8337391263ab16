"""Validation images that stay on the device are those that the evaluators see."""

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from ressl_plugin.data import evaluation_transform, mean_std
from ressl_plugin.data.memory import CleanBatches


def test_clean_batches_are_the_evaluators_images_in_order():
    cfg = OmegaConf.create({"data": {"dataset": "cifar10"}})
    array = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    targets = torch.arange(5)
    batches = list(CleanBatches(torch.from_numpy(array), targets, 2, *mean_std(cfg)))
    transform = evaluation_transform(cfg)
    expected = torch.stack([transform(Image.fromarray(image)) for image in array])
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert len(CleanBatches(torch.from_numpy(array), targets, 2, *mean_std(cfg))) == 3
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), targets)
