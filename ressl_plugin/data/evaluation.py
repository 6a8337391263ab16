"""Clean, un-augmented images for every evaluator."""

from torch.utils.data import DataLoader
from torchvision import transforms

from ressl_plugin.data.catalogue import row_of
from ressl_plugin.data.datasets import build_dataset
from ressl_plugin.data.sources import GivenImages
from ressl_plugin.data.statistics import interpolation, mean_std
from ressl_plugin.data.workers import leave_signals
from ressl_plugin.views import recipe


def crop_size(cfg):
    """The pixels a side that the network sees in evaluation: data.image_size, else the largest
    crop of the run, else the data set's usual size."""
    if size := cfg.data.get("image_size"):
        return size
    sizes = [entry["crop_size"] for entry in recipe.entries(cfg)]
    return max(sizes, default=row_of(cfg).size)


def evaluation_transform(cfg):
    """PIL RGB -> float tensor (3, S, S), as `fitting` says, normalised as the run's views are."""
    shorter, size, how = fitting(cfg)
    fit = [transforms.Resize(shorter, interpolation=how), transforms.CenterCrop(size)]
    normalise = transforms.Normalize(*mean_std(cfg))
    return transforms.Compose([*fit, transforms.ToTensor(), normalise])


def picture_transform(cfg):
    """PIL RGB -> uint8 (3, S, S): an image to draw views of, as large as they may show of it."""
    size = crop_size(cfg)
    stored = round(size * 256 / 224) if size >= 96 else size
    fit = [transforms.Resize(stored), transforms.CenterCrop(stored), transforms.PILToTensor()]
    return transforms.Compose(fit)


def fitting(cfg):
    """-> (pixels that the shorter side is resized to, side S of the middle cut out, filter).

    S = crop_size(cfg). Images of 96 pixels and more are resized to S x 256/224, as ImageNet's 256
    and 224; smaller ones, CIFAR (which S = 32 leaves as it is), STL-10, Tiny ImageNet and
    everything under data.image_size to S.
    """
    size = crop_size(cfg)
    if size < 96 or row_of(cfg).size <= 96 or cfg.data.get("image_size"):
        return size, size, interpolation(cfg)  # as the training crops are
    # bilinear in the host and in the reference, whatever the crops are
    return round(size * 256 / 224), size, transforms.InterpolationMode.BILINEAR


def evaluation_loader(cfg, split="val", need_labels=True):
    """DataLoader of (images (N, 3, S, S), targets (N,)), in order, nothing dropped.

    cfg: a complete config; split as in build_dataset. Raises UserError.
    """
    dataset = build_dataset(cfg, split, evaluation_transform(cfg), need_labels)
    return DataLoader(
        dataset,
        batch_size=cfg.optimizer.batch_size,
        num_workers=min(cfg.data.num_workers, len(dataset)),
        worker_init_fn=leave_signals,
    )


def given_loader(cfg, images):
    """`evaluation_loader` of images at hand (see GivenImages), of any sizes; targets are -1."""
    dataset = GivenImages(images)
    dataset.show_as(cfg, evaluation_transform(cfg))
    return DataLoader(dataset, batch_size=cfg.optimizer.batch_size)
