"""Clean, un-augmented images for every evaluator."""

from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ressl_plugin.data import datasets

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
}


def mean_std(cfg):
    """-> (mean, std), each three floats: the run's own (first augmentation), the data set's, or
    ImageNet's."""
    first = cfg.augmentations[0] if cfg.get("augmentations") else {}
    default = MEAN_STD.get(cfg.data.dataset, _IMAGENET)
    mean, std = (first.get(key) for key in ("mean", "std"))
    return tuple(mean or default[0]), tuple(std or default[1])


def crop_size(cfg):
    """The pixels a side that the network sees in evaluation: data.image_size, else the largest
    crop of the run, else the data set's usual size."""
    usual = {"cifar10": 32, "cifar100": 32, "stl10": 96, "tiny-imagenet": 64}
    crops = [view.get("crop_size") for view in cfg.get("augmentations") or []]
    largest = max((crop for crop in crops if crop), default=None)
    return cfg.data.get("image_size") or largest or usual.get(cfg.data.dataset, 224)


def evaluation_transform(cfg):
    """PIL RGB -> float tensor (3, S, S), normalised as the run's views are.

    CIFAR: as it is. Otherwise S = crop_size(cfg): images of 96 pixels and more are resized to
    S x 256/224 (shorter side) and centre-cropped, as ImageNet's 256/224; smaller ones, STL-10, Tiny
    ImageNet and everything under data.image_size are resized to S and centre-cropped.
    """
    size, name = crop_size(cfg), cfg.data.dataset
    small = size < 96 or name in ("stl10", "tiny-imagenet") or cfg.data.get("image_size")
    if name in ("cifar10", "cifar100"):
        steps = []
    elif small:
        # bicubic, as the training crops are
        steps = [transforms.Resize(size, interpolation=InterpolationMode.BICUBIC)]
        steps.append(transforms.CenterCrop(size))
    else:
        steps = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    normalise = transforms.Normalize(*mean_std(cfg))
    return transforms.Compose([*steps, transforms.ToTensor(), normalise])


def evaluation_loader(
    cfg, split="val", batch_size=None, num_workers=None, transform=None, need_labels=True
):
    """DataLoader of (images (N, 3, S, S), targets (N,)), in order, nothing dropped.

    split as in datasets.open. transform: None for evaluation_transform(cfg). Raises UserError.
    """
    dataset = datasets.open(cfg, split, transform or evaluation_transform(cfg), need_labels)
    if batch_size is None:
        batch_size = (cfg.get("optimizer") or {}).get("batch_size") or 256
    if num_workers is None:
        num_workers = cfg.data.get("num_workers") or 0
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=min(num_workers, len(dataset)),
        shuffle=False,
        drop_last=False,
    )
