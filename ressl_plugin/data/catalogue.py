"""What is known of each data set, by its name in the config: one row each."""

from __future__ import annotations

from dataclasses import dataclass

from ressl_plugin.utils.errors import UserError
from ressl_plugin.views.recipe import IMAGENET_MEAN_STD

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of R, G, B in 0 ... 1
_FETCH = "data.download=true fetches it (https://{})"


@dataclass(frozen=True)
class DataSet:
    """A row. It is read as folders of images, one a class, unless `torchvision` reads it."""

    classes: int | None = None  # no more class folders than these; None: any number
    images: tuple[int, int] | None = None  # for pre-training and for testing, as the paper has them
    digests: tuple[str | None, str | None] = (None, None)  # of both, see packing.py
    size: int = 224  # pixels a side, where neither the views nor data.image_size say
    solo: Statistics = IMAGENET_MEAN_STD  # of data.statistics=solo: the main branch's
    paper: Statistics | None = None  # of data.statistics=paper, the authors' code; None: as solo
    torchvision: str | None = None  # its class there, which has a test set of its own
    hint: str = "give the path of the images (`ressl data digits DIR` writes some to try)"


# The authors' deviations of CIFAR are the mean of each image's own.
DATASETS = {
    "cifar10": DataSet(
        classes=10,
        images=(50_000, 10_000),
        digests=("c7be9d1613885ce69f5598ebca33d754", "d49cf1c8964e72b3654fbc5f9ff89806"),
        size=32,
        solo=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        paper=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        torchvision="CIFAR10",
        hint=_FETCH.format("www.cs.toronto.edu/~kriz/cifar.html"),
    ),
    "cifar100": DataSet(
        classes=100,
        images=(50_000, 10_000),
        size=32,
        solo=((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        paper=((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        torchvision="CIFAR100",
        hint=_FETCH.format("www.cs.toronto.edu/~kriz/cifar.html"),
    ),
    "stl10": DataSet(
        classes=10,
        images=(105_000, 8_000),
        size=96,
        solo=((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
        paper=((0.4408, 0.4279, 0.3867), (0.2682, 0.2610, 0.2686)),
        torchvision="STL10",
        hint=_FETCH.format("cs.stanford.edu/~acoates/stl10/"),
    ),
    "tiny-imagenet": DataSet(
        classes=200,
        images=(100_000, 10_000),
        size=64,
        paper=((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
        hint="unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip, then "
        "`ressl data tiny-imagenet DIR`",
    ),
    "imagenet": DataSet(
        classes=1000,
        images=(1_281_167, 50_000),
        hint="it is had from https://image-net.org; lay it out as one folder a class",
    ),
    "imagenet100": DataSet(classes=100, hint="it is a choice of 100 of ImageNet's class folders"),
    "digits": DataSet(classes=10, hint="`ressl data digits DIR` writes it (DIR/train, DIR/val)"),
    "custom": DataSet(),
    "npz": DataSet(),
}


def row_of(cfg) -> DataSet:
    """The row of a config's data set.

    Raises:
        UserError: there is none.
    """
    name = cfg.data.get("dataset")
    if name not in DATASETS:
        raise UserError(f"data.dataset={name}; it is one of {', '.join(DATASETS)}")
    return DATASETS[name]
