"""A folder of one's own images, without labels: train on it, then find images that are alike.

    python examples/own_data_set.py PHOTOS            # any folder, nested or not, of mixed sizes
    python examples/own_data_set.py                   # 300 digits, half a minute on one CPU core

Prints, for some images, the three whose features are nearest.
"""

import sys
import tempfile
from pathlib import Path

import torch.nn.functional as F
from own_loop import digits
from PIL import Image

from ressl_plugin import open_run, pretrain


def make_folder(folder: Path) -> None:
    """Stands for your photographs: digits in colour, in nested folders, of several sizes."""
    for n, array in enumerate(digits()[0][:300].numpy()):
        file = folder / f"roll{n % 3}" / f"{n:03d}.png"
        file.parent.mkdir(exist_ok=True)
        side = 16 + 8 * (n % 4)
        Image.fromarray(array).resize((side, side + 2), Image.Resampling.BICUBIC).save(file)


def main(photos, run_dir="runs/own-data-set", size=16, **more):
    """Train in `run_dir`; `size`: pixels a side of the views, 224 for photographs; `more`: keys."""
    run = pretrain(
        "digits/ressl",  # settings for small images; imagenet-100/ressl for photographs
        run_dir=run_dir,
        data={"dataset": "custom", "train_path": photos, "val_path": None, "no_labels": True,
              "image_size": size},
        augmentations=[
            {"preset": "contrastive", "crop_size": size, "horizontal_flip": {"prob": 0.0}},
            {"preset": "weak", "crop_size": size, "horizontal_flip": {"prob": 0.0}},
        ],
        knn_eval={"enabled": False},  # it needs labels
        **{"method_kwargs.queue_size": 96, "max_epochs": 10, **more},
    )  # fmt: skip
    run = open_run(run.dir)  # as you would tomorrow
    files = sorted(file for file in Path(photos).rglob("*") if file.is_file())
    z = F.normalize(run.features(files), dim=1)
    alike = (z @ z.T).fill_diagonal_(-1).topk(3).indices
    for query in range(0, len(files), max(1, len(files) // 8)):
        names = ", ".join(files[i].name for i in alike[query])
        print(f"{files[query].name}: {names}")
    return files, alike


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_folder(Path(folder))
            main(folder)
