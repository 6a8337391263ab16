"""Views a second: the back ends side by side, drawing one weak and one contrastive view an image.

    python benchmarks/views.py --pairs 7 --json views.json

Each comparison uses the same cores: the host's loader has two workers and the main process, DALI
two threads, the batched back end two threads of the main process. A figure is images a second
through the loader alone, after a warm-up (workers started, caches filled). batched_vs_host is for
CIFAR's size; photographs are JPEG files of random smooth images made on the spot, decoding
included where the back end decodes (the batched one holds decoded images, as it does in training).
Above 1 is better.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch
import training
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from ressl_plugin import data, host
from ressl_plugin.views import recipe

ENDLESS = 10**6  # images: no run comes to the end of an epoch
AHEAD = 4  # batches that two workers, or DALI's queues, have ready at most
BARS = {"batched_vs_host": ">= 4.5"}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns its figures."""
    parser = common.arguments(__doc__, pairs=7)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=4096, help="small images a run")
    parser.add_argument("--photos", type=int, default=256, help="photographs a run")
    parser.add_argument("--size", type=int, default=32, help="pixels a side, small images")
    parser.add_argument("--photo-size", type=int, default=224, help="pixels a side of a view")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    common.begin(args)
    figures, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        small = _folder(Path(folder) / "small", 64, args.size, "png")
        photos = _folder(Path(folder) / "photos", args.photos, args.photo_size * 5 // 4, "jpg")
        cases = (
            ("batched_vs_host", args.size, args.images, args.batch, _batched, small),
            ("batched_224_vs_host", args.photo_size, args.photos, 32, _batched, photos),
            ("dali_cpu_vs_host", args.photo_size, args.photos, 32, _dali, photos),
        )
        for key, size, images, batch, make, root in cases:
            batch = min(batch, images // 2)
            settings = _settings(root, size, batch, args)
            try:
                ahead = 0 if make is _batched else AHEAD
                ours = _rate(make(settings, size, images, args), images, batch, ahead)
            except ImportError as error:
                rows.append((key, "-", "-", "-", str(error), ""))
                continue
            theirs = _rate(_host(settings, root, size, args), images, batch, AHEAD)
            runs = common.alternate({"ours": ours, "host": theirs}, args.pairs)
            figures[key], low, high = common.ratio(runs, "ours", "host")
            rows.append((key, common.middle(runs, "ours"), common.middle(runs, "host"),
                         figures[key], f"{low:.2f}-{high:.2f}", BARS.get(key, "")))  # fmt: skip
    common.table(rows, ("", "ours images/s", "host images/s", "ratio", "range", "bar"))
    return common.finish(args, figures)


def _settings(root: Path, size: int, batch: int, args):
    """The paper's two views of one size, for a folder of images."""
    cfg = training.settings(overrides=[
        f"optimizer.batch_size={batch}", "data.dataset=custom", f"data.train_path={root}",
        f"data.num_workers={args.workers}", "precision=32-true", "devices=1",
        "accelerator=cpu", "dali.device=cpu",
    ])  # fmt: skip
    for entry in cfg.augmentations:
        entry.crop_size = size
    return cfg


def _folder(root: Path, count: int, side: int, ending: str) -> Path:
    """`count` smooth random images in two classes."""
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        folder = root / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{i}.{ending}", **({"quality": 90} if ending == "jpg" else {}))
    return root


def _batched(cfg, size: int, images: int, args):
    """Images in memory at the views' size, and in photographs' case at the files' own."""
    side = size if size == args.size else size * 5 // 4
    return training.random_images(cfg, side, images)


def _host(cfg, root: Path, size: int, args):
    """The host's pipelines and loader as shipped; small images from memory, as CIFAR's are."""
    views = [host.view_transform(entry) for entry in recipe.expand(cfg.augmentations)]
    transform = host.DATALOADER.prepare_n_crop_transform(views, [1] * len(views))
    if size == args.size:
        dataset = InMemory(ENDLESS, size, transform)
    else:
        dataset = _Again(ImageFolder(root, transform), ENDLESS)
    return host_loader(dataset, cfg.optimizer.batch_size, args.workers)


def host_loader(dataset, batch_size: int, workers: int) -> DataLoader:
    """With the arguments of the host's prepare_dataloader; pinned only where that is of use."""
    how = {"shuffle": True, "drop_last": True, "pin_memory": torch.cuda.is_available()}
    return DataLoader(dataset, batch_size, num_workers=workers, **how)


class InMemory:
    """What torchvision's CIFAR10 does: an array, each image turned into PIL's and transformed."""

    def __init__(self, count: int, size: int, transform):
        shape = (512, size, size, 3)
        self.array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.transform, self.count = transform, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index, self.transform(Image.fromarray(self.array[index % len(self.array)])), 0


class _Again:
    """A data set over and over, with indexes: the host's loader restarts its workers after every
    epoch."""

    def __init__(self, dataset, count: int):
        self.dataset, self.count = dataset, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return (index, *self.dataset[index % len(self.dataset)])


def _dali(cfg, size: int, images: int, args):
    import nvidia.dali  # noqa: F401 - says that it is missing

    from ressl_plugin.data import dali

    read = recipe.read(cfg.augmentations)
    dataset = data.build_dataset(cfg, "pretrain")
    return dali.DaliLoader(cfg, read, dataset)


def _rate(loader, images: int, batch: int, ahead: int):
    """-> a function that draws about `images` images and returns images a second.

    `ahead` batches may have been made before they were asked for: they are taken off before the
    clock starts, and after it has stopped there is time to make them again, so that workers
    neither give away what was made on the other side's time nor disturb it.
    """
    steps = max(1, images // batch)
    stream = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    next(stream)  # workers and pipelines start

    def run() -> float:
        for _ in range(ahead):
            next(stream)
        start = common.now()
        for _ in range(steps):
            next(stream)
        taken = common.now() - start
        time.sleep(1.5 * taken / steps * ahead)
        return steps * batch / taken

    return run


if __name__ == "__main__":
    main()
