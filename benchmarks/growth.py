"""How a step grows with batch, queue, embedding and crops, and the loader with its workers.

    python benchmarks/growth.py --pairs 3 --json growth.json

Seconds of a training step of the plugin's ReSSL (paper's stem), of the host's own (its stem) and of
Algorithm 1 in plain PyTorch (training.Plain), taking turns; ResNet-18 on 32x32, one quantity
changed at a time. The host trains one contrastive view only. Loaders: images/s of the weak and the
contrastive view at CIFAR's size, the host's with 0, 1, 2 and 4 workers beside the batched back end.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import torch
import training
import views

GROWTH = {  # quantity -> values; N images, K rows of the queue, D of an embedding, student crops
    "N": (8, 16, 32, 64),
    "K": (4096, 16384, 65536),
    "D": (128, 256, 512),
    "crops": (1, 2, 4),
}
BASE = {"N": 16, "K": 4096, "D": 128, "crops": 1}


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the measurement; returns its figures."""
    parser = common.arguments(__doc__, pairs=3)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--steps", type=int, default=2, help="steps a run, after one more")
    parser.add_argument("--images", type=int, default=4096, help="images through a loader")
    parser.add_argument("--only", nargs="+", choices=[*GROWTH, "workers"])
    args = parser.parse_args(argv)
    common.begin(args)
    wanted = args.only or [*GROWTH, "workers"]
    figures, rows = {}, []
    for quantity, values in GROWTH.items():
        for value in values if quantity in wanted else ():
            runs = common.alternate(steps({**BASE, quantity: value}, args), args.pairs)
            taken = {side: common.middle(runs, side) for side in runs[0]}
            figures |= {f"{side}_{quantity}_{value}": s for side, s in taken.items()}
            rows.append((f"{quantity} {value}", *(
                taken[side] * 1e3 if side in taken else "" for side in ("ours", "host", "plain")
            )))  # fmt: skip
    if rows:
        common.table(rows, ("ms a step", "ours", "host", "plain PyTorch"))
    if "workers" in wanted:
        figures |= loaders(args)
    return common.finish(args, figures)


def steps(at: dict[str, int], args) -> dict:
    """The sides that can be measured here: name -> seconds of a step."""
    views = [f"{{preset: contrastive, crop_size: {args.size}, num_crops: {at['crops']}}}",
             f"{{preset: weak, crop_size: {args.size}}}"]  # fmt: skip
    cfg = training.settings(overrides=[
        f"optimizer.batch_size={at['N']}", f"method_kwargs.queue_size={at['K']}",
        f"method_kwargs.proj_output_dim={at['D']}", f"augmentations=[{','.join(views)}]",
        "batchnorm.groups=0", "knn_eval.enabled=false", "precision=32-true", "devices=1",
    ])  # fmt: skip
    torch.manual_seed(0)
    batch = training.random_batch(at["N"], args.size, views=at["crops"] + 1)
    models = {"ours": training.ours(cfg, backbone__stem="paper")}
    if at["crops"] == 1:
        models["host"] = training.hosts(cfg)
    sides = {
        name: lambda model=model: training.seconds_a_step(model, training.Repeat(batch), args.steps)
        for name, model in models.items()
    }
    if at["crops"] == 1:
        plain = training.Plain(cfg)
        sides["plain"] = lambda: plain.seconds_a_step(batch, args.steps)
    return sides


def loaders(args) -> dict[str, float]:
    """Images/s through the loaders alone."""
    figures, args.workers, args.batch = {}, 0, min(256, args.images // 2)
    with tempfile.TemporaryDirectory() as folder:
        root = views._folder(Path(folder), 8, args.size, "png")
        cfg = views._settings(root, args.size, args.batch, args)
        sides = {"batched": (views._batched(cfg, args.size, args.images, args), 0)}
        for args.workers in (0, 1, 2, 4):
            sides[f"host, {args.workers} workers"] = (
                views._host(cfg, root, args.size, args), max(1, 2 * args.workers)
            )  # fmt: skip
        rates = {
            name: views._rate(loader, args.images, args.batch, ahead)
            for name, (loader, ahead) in sides.items()
        }
        runs = common.alternate(rates, args.pairs)
    for name in sides:
        figures[f"images_per_s_{name.replace(', ', '_').replace(' ', '_')}"] = common.middle(
            runs, name
        )
    common.table([(name, common.middle(runs, name)) for name in sides], ("", "images/s"))
    return figures


if __name__ == "__main__":
    main()
