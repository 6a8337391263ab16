"""How a run's images reach its network: their mean and deviation, the filter that resizes them.

Views, evaluators and online evaluation all ask here, so that a network is shown what it was
trained on.
"""

from omegaconf import OmegaConf
from torchvision.transforms import InterpolationMode

from ressl_plugin.host.pipelines import IMAGENET
from ressl_plugin.host.pipelines import MEAN_STD as SOLO
from ressl_plugin.views import recipe

# The authors' small-data code. CIFAR's deviations are the mean of each image's own.
PAPER = {
    **SOLO,
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4408, 0.4279, 0.3867), (0.2682, 0.2610, 0.2686)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
TABLES = {"solo": SOLO, "paper": PAPER}


def mean_std(cfg):
    """-> (mean, std), each three floats: the run's own (first augmentation), the data set's by
    `data.statistics`, or ImageNet's."""
    first = cfg.augmentations[0] if cfg.get("augmentations") else {}
    table = TABLES[cfg.data.get("statistics") or "solo"]
    default = table.get(cfg.data.dataset, IMAGENET)
    mean, std = (first.get(key) for key in ("mean", "std"))
    return tuple(mean or default[0]), tuple(std or default[1])


def keep(cfg, dataset: str):
    """`cfg` in place, evaluated with the statistics of `dataset`, which it was trained on, whatever
    data set it names now."""
    if cfg.get("augmentations") and cfg.data.dataset != dataset:
        trained = OmegaConf.merge(cfg, {"data": {"dataset": dataset}})
        cfg.augmentations[0].mean, cfg.augmentations[0].std = map(list, mean_std(trained))


def interpolation(cfg) -> InterpolationMode:
    """`data.interpolation` as torchvision names it."""
    return InterpolationMode(cfg.data.get("interpolation") or "bicubic")


def view_recipe(cfg) -> recipe.Recipe:
    """The run's views, with its statistics and its interpolation where an entry gives none.

    Raises:
        UserError: naming the entry; see recipe.read.
    """
    return recipe.read(cfg.augmentations, mean_std(cfg), interpolation(cfg).value)
