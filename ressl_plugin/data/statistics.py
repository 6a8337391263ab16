"""How a run's images reach its network: their mean and deviation, the filter that resizes them.

Views, evaluators and online evaluation all ask here, so that a network is shown what it was
trained on.
"""

from omegaconf import OmegaConf
from torchvision.transforms import InterpolationMode

from ressl_plugin.data.catalogue import row_of
from ressl_plugin.views import recipe


def mean_std(cfg):
    """-> (mean, std), each three floats: the run's own (first augmentation), the data set's by
    `data.statistics`."""
    first = next(iter(recipe.entries(cfg)), {})
    row = row_of(cfg)
    default = (cfg.data.get("statistics") == "paper" and row.paper) or row.solo
    mean, std = (first.get(key) for key in ("mean", "std"))
    return tuple(mean or default[0]), tuple(std or default[1])


def keep(cfg, dataset: str):
    """`cfg` in place, evaluated with the statistics of `dataset`, which it was trained on, whatever
    data set it names now."""
    if cfg.get("augmentations") and cfg.data.dataset != dataset:
        trained = OmegaConf.merge(cfg, {"data": {"dataset": dataset}})
        mean, std = map(list, mean_std(trained))
        for entry in cfg.augmentations:
            entry.mean, entry.std = mean, std


def interpolation(cfg) -> InterpolationMode:
    """`data.interpolation` as torchvision names it."""
    return InterpolationMode(cfg.data.get("interpolation") or "bicubic")


def view_recipe(cfg) -> recipe.Recipe:
    """The run's views, with its statistics and its interpolation where an entry gives none.

    Raises:
        UserError: naming the entry; see recipe.read.
    """
    return recipe.read(cfg.augmentations, mean_std(cfg), interpolation(cfg).value)
