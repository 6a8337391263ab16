"""`ressl quality`: how good the features are, without labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ressl_plugin import data
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.subject import append, device_named, held_out, with_overrides
from ressl_plugin.method import metrics
from ressl_plugin.run.directories import Run
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import render
from ressl_plugin.views import batched

COMMAND = {
    "name": "quality",
    "help": "features judged without labels: RankMe, alpha-ReQ, uniformity, alignment, LiDAR",
    "arguments": {
        "--images": {"type": "int", "help": "so many are shown in views, for alignment and LiDAR"},
        "--views": {"type": "int", "help": "of each of them"},
    },
}
BETTER = {
    "rankme": "higher",
    "alpha_req": "near 1",
    "uniformity": "lower",
    "alignment": "lower, unless collapsed",
    "lidar": "higher",
}


def evaluate(path, overrides, images=1000, views=10, device="auto") -> None:
    """Each metric of the backbone's features, printed, then added to the run's records.

    Of clean validation images, where there are none of training images; alignment and LiDAR of
    contrastive views of some of them, drawn as the run's student sees them.

    Example:
        >>> evaluate("runs/mine", [], views=2)  # doctest: +SKIP

    Raises:
        UserError: fewer than two images or views, images missing.
    """
    if images < 2 or views < 2:
        raise UserError(f"--images {images} --views {views}: at least 2 of each")
    run = with_overrides(path, overrides)
    found = measure(run, device_named(device), images, views)
    rows = [[name, f"{value:.4g}", BETTER[name]] for name, value in found.items()]
    print(render(["metric", "value", "better"], rows), end="", flush=True)
    split = _split(run)
    dataset = data.build_dataset(run.cfg, split)
    sets, drawn = {split: data.identify(dataset)}, min(images, len(dataset))
    for name, value in found.items():
        clean = name in ("rankme", "alpha_req", "uniformity")
        of = "clean" if clean else f"{views} views of {drawn}"  # which bounds LiDAR's rank
        if math.isfinite(value):
            append(run, "quality", f"{split} images, {of}", name, value, data_sets=sets)


def measure(run: Run, device: torch.device, images: int = 1000, views: int = 10) -> dict:
    """Every metric of method/metrics.py by name, of a run's backbone; alpha-ReQ may be NaN."""
    backbone = run.backbone()
    loader = data.evaluation_loader(run.cfg, _split(run), need_labels=False)
    clean, _ = extract(backbone, loader, device)
    seen = of_views(run, backbone, device, images, views)
    return {
        **metrics.of_features(clean),
        "alignment": metrics.alignment(seen),
        "lidar": metrics.lidar(seen),
    }


def of_views(run: Run, backbone, device, images: int, views: int) -> Tensor:
    """Features [V, N, d] of N images at equal distances in `views` drawings of the run's first
    contrastive view. The draw is the config's seed's."""
    dataset = data.build_dataset(run.cfg, _split(run), data.picture_transform(run.cfg))
    rows = metrics.sampled(torch.arange(len(dataset)), images)
    pictures = torch.stack([dataset[i][0] for i in rows.tolist()])
    recipe = data.view_recipe(run.cfg)
    generator = torch.Generator().manual_seed(run.cfg.seed)

    def drawn():
        for part in pictures.split(run.cfg.optimizer.batch_size):
            yield batched.draw(part, recipe, generator)[recipe.student[0]], torch.zeros(len(part))

    return torch.stack([extract(backbone, drawn(), device, False)[0] for _ in range(views)])


def _split(run: Run) -> str:
    return "val" if held_out(run.cfg) else "train"
