"""Does a number without labels pick the checkpoint that a linear probe would pick?

    python benchmarks/quality.py --seeds 1 2 3 --json quality.json

A training keeps its weights every few epochs. Of each: the accuracy of logistic regression on
frozen features (validation images), kNN, and every metric of `ressl quality`. Printed, a metric a
line and the mean over the seeds: Spearman's rank correlation of the metric (turned so that more is
better) with the accuracy over the checkpoints, the accuracy of the checkpoint that it picks, and
how much that is below the best one's. "last" takes the last checkpoint. The digits, or with --train
and --val the images of two .npz (x, y) by --recipe, such as CIFAR-10's by cifar/ressl.

    python benchmarks/quality.py --cost --epochs 8 --json quality_cost.json

What `quality_eval` takes of an epoch that it measures, and nothing else; medians over the epochs
after the first. Alignment, a number of every step, is timed by itself.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

import common
import torch
from lightning.pytorch import Callback
from scipy.stats import spearmanr

from ressl_plugin import config, run
from ressl_plugin.data.digits import make_digits
from ressl_plugin.evaluate import knn, logistic, quality, subject
from ressl_plugin.method.online import OnlineEvaluation
from ressl_plugin.run import checkpoint
from ressl_plugin.train.best import CRITERIA
from ressl_plugin.train.pretrain import pretrain
from ressl_plugin.utils.average_meter import AverageMeter

MORE_IS_BETTER = {
    **{name: score for name, (_, score) in CRITERIA.items() if name != "linear"},
    "alignment": lambda value: -value,
    "lidar": float,
    "last": float,
}


class Keep(Callback):
    """The weights of every so many epochs, each in a file of its own beside the run's."""

    def __init__(self, every: int):
        self.every = every

    def on_train_epoch_end(self, trainer, module):
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0:
            file = Path(module.cfg.run_dir) / f"epoch-{epoch:04d}.ckpt"
            checkpoint.save(file, {"state_dict": module.state_dict()})


class Epochs(Callback):
    """Seconds of each epoch, validation included."""

    def __init__(self):
        self.seconds, self.steps = [], 0

    def on_train_epoch_start(self, trainer, module):
        self.start = common.now()

    def on_train_epoch_end(self, trainer, module):
        self.seconds.append(common.now() - self.start)
        self.steps = trainer.num_training_batches


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the study; returns its figures, means over the seeds."""
    parser = common.arguments(__doc__, pairs=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--every", type=int, default=5, help="epochs between two checkpoints")
    parser.add_argument("--views", type=int, default=10, help="of an image, for LiDAR")
    parser.add_argument("--train", type=Path, help="training images, an .npz")
    parser.add_argument("--val", type=Path, help="validation images, an .npz")
    parser.add_argument("--recipe", default="digits/ressl")
    parser.add_argument("--folder", type=Path,
                        help="where the runs stay, to go on with; default: nowhere")  # fmt: skip
    parser.add_argument("--cost", action="store_true", help="of quality_eval, in time")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    args = parser.parse_args(argv)
    what = args.train.stem if args.train else "digits"
    how = "the cost of quality_eval"
    if not args.cost:
        how = f"a checkpoint every {args.every}, seeds {args.seeds}"
    common.begin(args, f"{what}, {args.recipe}, {args.epochs} epochs, {how}")
    if args.cost:
        with tempfile.TemporaryDirectory() as folder:
            return common.finish(args, cost(args, Path(folder)))
    studies = []
    with tempfile.TemporaryDirectory() as folder:
        place = args.folder or Path(folder)
        for seed in args.seeds:
            rows = study(args, place, seed)
            print(f"\nseed {seed}")
            names = list(rows[0])
            common.table([tuple(row[name] for name in names) for row in rows], tuple(names))
            studies.append(rows)
    print()
    return common.finish(args, verdict(studies))


def study(args, place: Path, seed: int) -> list[dict[str, float]]:
    """One training: of each checkpoint its epoch, accuracy and metrics."""
    where = place / f"seed-{seed}"
    resume = f"resume={str((where / 'config.yaml').exists()).lower()}"
    words = [f"run_dir={where}", f"seed={seed}", resume, "knn_eval.enabled=false"]
    cfg = settings(args, place, *words)
    pretrain(cfg, callbacks=[Keep(args.every)])
    rows = []
    for file in sorted(where.glob("epoch-*.ckpt")):
        opened, device = run.open_run(file), subject.device_named("auto")
        features = subject.Splits(opened, device).of(opened.backbone())
        epoch = int(file.stem.removeprefix("epoch-"))
        top1 = logistic.probe(*features, seed=seed, device=device)["top1"]
        near = knn.default_cell(*features)["top1"]
        measured = quality.measure(opened, device, views=args.views)
        rows.append({"epoch": epoch, "linear": top1, "knn": near, **measured, "last": float(epoch)})
    return rows


def settings(args, place: Path, *words: str):
    """The recipe on the images that are asked for, with further words."""
    images = args.train, args.val
    if args.train is None:
        make_digits(place / "digits")
        images = place / "digits" / "train", place / "digits" / "val"
    return config.finish(config.load(args.recipe, [
        *words, f"max_epochs={args.epochs}",
        f"data.train_path={images[0]}", f"data.val_path={images[1]}",
        *(["data.dataset=npz", "data.format=npz"] if args.train else []),
        "enable_progress_bar=false", "enable_model_summary=false", *args.overrides,
    ]))  # fmt: skip


def cost(args, place: Path) -> dict[str, float]:
    """Share of an epoch that the online metrics take, printed with its parts."""
    measure, spent, epochs = OnlineEvaluation._quality, [], Epochs()

    def timed(*given):
        start = common.now()
        found = measure(*given)
        spent.append(common.now() - start)
        return found

    cfg = settings(args, place, f"run_dir={place / 'run'}", "quality_eval.enabled=true")
    OnlineEvaluation._quality = staticmethod(timed)
    try:
        pretrain(cfg, callbacks=[epochs])
    finally:
        OnlineEvaluation._quality = staticmethod(measure)
    of_features = statistics.median(spent[1:])
    alignment = epochs.steps * alignment_seconds(cfg)
    epoch = statistics.median(epochs.seconds[1:])
    parts = {"RankMe, alpha-ReQ, uniformity": of_features, "alignment": alignment, "epoch": epoch}
    lines = [(what, 1e3 * seconds, 100 * seconds / epoch) for what, seconds in parts.items()]
    common.table(lines, ("", "ms an epoch", "%"))
    return {"online_share": (of_features + alignment) / epoch}


def alignment_seconds(cfg, steps: int = 1000) -> float:
    """Of a step: the mean distance of a batch's embeddings, and adding it to the epoch's mean."""
    z_s, z = torch.randn(2, cfg.optimizer.batch_size, cfg.method_kwargs.proj_output_dim)
    means, start = AverageMeter(), common.now()
    for _ in range(steps):
        means.add({"train_alignment": (z_s - z).square().sum(-1).mean()}, len(z))
    return (common.now() - start) / steps


def verdict(studies: list[list[dict[str, float]]]) -> dict[str, float]:
    """The table of metrics, printed, and its figures."""
    figures, lines = {}, []
    for name, score in MORE_IS_BETTER.items():
        found = []
        for rows in studies:
            scores = [-math.inf if math.isnan(row[name]) else score(row[name]) for row in rows]
            accuracies = [row["linear"] for row in rows]
            picked = accuracies[scores.index(max(scores))]
            ordered = len(set(scores)) > 1 and len(set(accuracies)) > 1
            rank = float(spearmanr(scores, accuracies)[0]) if ordered else 0.0
            found.append((rank, picked, max(accuracies) - picked))
        means = [statistics.mean(column) for column in zip(*found)]
        keys = ("spearman", "picked", "below_best")
        figures |= {f"{name}_{key}": value for key, value in zip(keys, means)}
        lines.append((name, *means))
    common.table(lines, ("metric", "Spearman", "picked, %", "below the best, points"))
    return figures


if __name__ == "__main__":
    main()
